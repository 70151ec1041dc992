"""Two workers on two hosts: network namespaces with a slow line between."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator

import numpy as np
import pytest

from conftest import Floats

pytest.importorskip("sklearn")
pytest.importorskip("distributed")

NEAR, FAR = f"fx{os.getpid()}a", f"fx{os.getpid()}b"

#: Of a host's line: 20 ms where the system can delay, else a rate.
LINES = (
    ["netem", "delay", "20ms"],
    ["tbf", "rate", "50mbit", "burst", "16kbit", "latency", "200ms"],
)

#: Runs in the one namespace, with a worker there and one in the other.
SCRIPT = """
import subprocess, sys
import dask.array as da
import numpy as np
from dask import config
from distributed import Client, LocalCluster
import faiss_ext
from faiss_ext import dask as fdask

folder, far = sys.argv[1:]
base = np.load(folder + "/base.npy")
queries = np.load(folder + "/queries.npy")
options = dict(max_iter=3, tol=0, random_state=0, block_rows=700)


def fit():
    return fdask.fit(da.from_array(base, chunks=(700, 128)), 6, **options)


if __name__ == "__main__":
    with config.set(scheduler="synchronous"):
        alone = fit()
    with LocalCluster(
        n_workers=1, threads_per_worker=1, host="10.77.0.1",
        dashboard_address=None,
    ) as cluster, Client(cluster) as client:
        worker = subprocess.Popen([
            "ip", "netns", "exec", far, sys.executable, "-m",
            "distributed.cli.dask_worker", cluster.scheduler_address,
            "--nthreads", "1", "--no-dashboard", "--host", "10.77.0.2",
        ])
        try:
            client.wait_for_workers(2, timeout=60)
            together = fit()
            for name in ("means_", "covariances_", "weights_"):
                np.testing.assert_array_equal(
                    getattr(together, name), getattr(alone, name)
                )
            manifest = fdask.build(
                da.from_array(base, chunks=(700, 128)), "GMM16,Flat",
                folder + "/shards", block_rows=700, shard_rows=1400,
            )
            index = fdask.merge(manifest, on_disk=True, queries=queries)
            for params in (dict(nprobe=2), dict(target_recall=0.9)):
                D, _ = index.search(
                    queries, 10, params=faiss_ext.SearchParameters(**params)
                )
                D2, _ = fdask.search(manifest, queries, 10, params=params)
                np.testing.assert_array_equal(D2, D)
            hosts = {a.split("//")[1].split(":")[0] for a in client.nthreads()}
            assert hosts == {"10.77.0.1", "10.77.0.2"}, hosts
        finally:
            worker.terminate()
            worker.wait()
    print("the same over", len(hosts), "hosts")
"""


def run(*words: str) -> bool:
    return subprocess.run(words, capture_output=True).returncode == 0


@pytest.fixture
def two_hosts() -> Iterator[str]:
    """Their line's kind."""
    try:
        made = (
            run("ip", "netns", "add", NEAR)
            and run("ip", "netns", "add", FAR)
            and run(
                *("ip", "link", "add", "va", "netns", NEAR, "type", "veth"),
                *("peer", "name", "vb", "netns", FAR),
            )
        )
        if not made:
            pytest.skip("namespaces need rights that this process has not")
        for host, end, address in (
            (NEAR, "va", "10.77.0.1/24"),
            (FAR, "vb", "10.77.0.2/24"),
        ):
            assert run("ip", "-n", host, "addr", "add", address, "dev", end)
            assert run("ip", "-n", host, "link", "set", end, "up")
            assert run("ip", "-n", host, "link", "set", "lo", "up")
        for line in LINES:
            if all(
                run(
                    *("ip", "netns", "exec", host),
                    *("tc", "qdisc", "add", "dev", end, "root", *line),
                )
                for host, end in ((NEAR, "va"), (FAR, "vb"))
            ):
                yield line[0]
                return
        pytest.skip("no line can be made slow here")
    finally:
        run("ip", "netns", "del", NEAR)
        run("ip", "netns", "del", FAR)


def test_two_hosts_over_a_slow_line(
    two_hosts: str, base: Floats, queries: Floats, tmp_path: pathlib.Path
) -> None:
    np.save(tmp_path / "base.npy", base)
    np.save(tmp_path / "queries.npy", queries)
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run(
        [
            *("ip", "netns", "exec", NEAR, sys.executable, str(script)),
            *(str(tmp_path), FAR),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the same over 2 hosts" in done.stdout
    print(f"over a line of {two_hosts}")
