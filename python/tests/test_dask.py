"""Training, building and searching on a cluster of processes."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from conftest import Floats, Ids, interrupted_in_its_work, recall

pytest.importorskip("sklearn")
distributed = pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")

import faiss_ext  # noqa: E402
from faiss_ext import GaussianMixture, _dask_search  # noqa: E402
from faiss_ext import dask as fdask  # noqa: E402

OPTIONS: dict[str, Any] = dict(
    covariance_type="diag", max_iter=4, tol=0, random_state=0, block_rows=700
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
        ) as made,
        distributed.Client(made),
    ):
        yield made


@pytest.fixture(scope="module")
def alone(base: Floats) -> Any:
    """What one process fits."""
    import dask.config

    with dask.config.set(scheduler="synchronous"):
        return fdask.fit(da.from_array(base, chunks=(999, 64)), 6, **OPTIONS)


def same_bits(a: Any, b: Any) -> None:
    for name in ("means_", "covariances_", "weights_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.lower_bounds_ == b.lower_bounds_


def test_is_the_estimators_fit(base: Floats, alone: Any) -> None:
    start = dict(
        means_init=alone.means_,
        weights_init=alone.weights_,
        precisions_init=alone.precisions_,
    )
    import dask.config

    options = {**OPTIONS, **start}
    with dask.config.set(scheduler="synchronous"):
        a = fdask.fit(da.from_array(base), 6, **options)
    del options["block_rows"]
    b = GaussianMixture(6, **options).fit(base)
    np.testing.assert_allclose(a.means_, b.means_, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(a.covariances_, b.covariances_, rtol=1e-3)
    assert a.lower_bound_ == pytest.approx(b.lower_bound_, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_same_bits_whatever_the_workers(
    cluster: Any, base: Floats, alone: Any
) -> None:
    x = da.from_array(base, chunks=(1234, 128))
    same_bits(fdask.fit(x, 6, **OPTIONS), alone)


@pytest.mark.filterwarnings("ignore")
def test_the_same_bits_from_files(
    cluster: Any, base: Floats, alone: Any, tmp_path: pathlib.Path
) -> None:
    paths = []
    for i, part in enumerate(np.array_split(base, [1000, 1500, 4444])):
        paths.append(tmp_path / f"{i}.npy")
        np.save(paths[-1], part)
    same_bits(fdask.fit(paths, 6, **OPTIONS), alone)


@contextlib.contextmanager
def a_worker_dies(cluster: Any, after: Any = 0.3) -> Iterator[Any]:
    """SIGKILL for one of them, so many seconds into the block."""
    killed = threading.Event()

    def kill() -> None:
        time.sleep(after)
        worker = next(iter(cluster.workers.values()))
        os.kill(worker.pid, signal.SIGKILL)
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    thread.join()
    assert killed.is_set()


@pytest.mark.filterwarnings("ignore")
def test_the_same_bits_when_a_worker_dies(
    cluster: Any, base: Floats, alone: Any
) -> None:
    x = da.from_array(base, chunks=(700, 128))
    with a_worker_dies(cluster):
        fits = [fdask.fit(x, 6, **OPTIONS)]
    fits.append(fdask.fit(x, 6, **OPTIONS))
    for fitted in fits:
        same_bits(fitted, alone)


@pytest.mark.filterwarnings("ignore")
def test_a_nan_is_named_by_file_and_row(
    cluster: Any, base: Floats, tmp_path: pathlib.Path
) -> None:
    x = base[:1500].copy()
    x[903, 5] = np.nan
    np.save(tmp_path / "bad.npy", x)
    with pytest.raises(ValueError, match="bad.npy, rows from 700: row 203"):
        fdask.fit([tmp_path / "bad.npy"], 3, **OPTIONS)


FIT_UNTIL_INTERRUPTED = """
import distributed, numpy as np, signal
import dask.array as da
from faiss_ext import dask as fdask

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None
    ) as cluster, distributed.Client(cluster):
        x = da.random.default_rng(0).random((4000, 16), chunks=(1000, 16))
        fdask.fit(x, 4, max_iter=1, block_rows=1000)
        print("start", flush=True)
        try:
            fdask.fit(x, 4, max_iter=10**6, tol=0, block_rows=1000)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        fdask.fit(x, 4, max_iter=1, block_rows=1000)
        print("fine", flush=True)
"""


def test_ctrl_c_ends_a_fit(tmp_path: pathlib.Path) -> None:
    script = tmp_path / "fit.py"  # workers import it
    script.write_text(FIT_UNTIL_INTERRUPTED)
    with interrupted_in_its_work(
        [sys.executable, str(script)], stderr=subprocess.DEVNULL, cwd=tmp_path
    ) as process:
        begin = time.perf_counter()
        assert process.stdout.readline() == "interrupted\n"
        assert time.perf_counter() - begin < 5
        assert process.stdout.readline() == "fine\n"
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def built(
    cluster: Any, base: Floats, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    return fdask.build(
        da.from_array(base, chunks=(800, 128)),
        "GMM16,Flat",
        tmp_path_factory.mktemp("shards"),
        block_rows=700,
        shard_rows=2100,
    )


@pytest.mark.parametrize("where", ["workers", "here"])
def test_a_bar_counts_shards(
    where: str,
    cluster: Any,
    base: Floats,
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tqdm")
    import dask.config

    here = {"scheduler": "synchronous"} if where == "here" else {}
    with dask.config.set(here):
        for verbose in (True, False):
            fdask.build(
                da.from_array(base, chunks=(800, 128)),
                "GMM16,Flat",
                tmp_path / str(verbose),
                block_rows=700,
                shard_rows=2100,
                verbose=verbose,
            )
            err = capfd.readouterr().err
            assert ("building" in err and "/3.00" in err) == verbose
    assert (tmp_path / "True" / "manifest.json").read_text() == (
        tmp_path / "False" / "manifest.json"
    ).read_text()


def test_the_manifest_says_what_there_is(built: Any) -> None:
    manifest = json.loads(built.read_text())
    assert manifest["ntotal"] == 6000
    assert [s["begin"] for s in manifest["shards"]] == [0, 2100, 4200]
    assert sum(s["rows"] for s in manifest["shards"]) == 6000
    assert not list(built.parent.glob("*.partial"))


@pytest.mark.parametrize("nprobe", [1, 3, 16])
def test_shards_find_what_one_index_finds(
    built: Any, base: Floats, queries: Floats, nprobe: Any
) -> None:
    whole = faiss_ext.read_index(built.parent / "trained.index")
    whole.add(base)
    params = faiss_ext.SearchParameters(nprobe=nprobe, probe_order="distance")
    D, I = whole.search(queries, 10, params=params)
    D2, I2 = fdask.search(built, queries, 10, nprobe=nprobe)
    np.testing.assert_allclose(D2, D, rtol=1e-5)
    assert recall(I2, I) > 0.999


def test_merged_shards_are_one_index(
    built: Any, queries: Floats, truth: Ids
) -> None:
    index = fdask.merge(built)
    assert index.ntotal == 6000
    assert index.calibration.fitted
    index.nprobe = 16
    assert recall(index.search(queries, 10)[1], truth) == 1


def on_disk(built: Any, folder: Any, queries: Floats | None = None) -> Any:
    """A copy of what was built, its shards merged on disk."""
    shutil.copytree(built.parent, folder)
    manifest = folder / "manifest.json"
    fdask.merge(manifest, on_disk=True, queries=queries)
    return manifest


def test_a_moved_folder_has_vectors_of_its_own(
    cluster: Any, built: Any, queries: Floats, tmp_path: pathlib.Path
) -> None:
    """What `merge` wrote is searched where it lies, by who may only read."""
    manifest = on_disk(built, tmp_path / "merged", queries)
    settings = dict(nprobe=16)
    D, labels = fdask.search(manifest, queries, 5, params=settings)
    moved = tmp_path / "moved"
    shutil.move(manifest.parent, moved)
    for file in moved.iterdir():
        file.chmod(0o444)
    for shards in (None, 2):
        D2, labels2 = fdask.search(
            moved / "manifest.json",
            queries,
            5,
            params=settings,
            shards=shards,
        )
        np.testing.assert_array_equal(D2, D)
        same_but_for_ties(D, labels2, labels, f"{shards} shards")


PARAMETERS: list[dict[str, Any]] = [
    dict(nprobe=1, probe_order="codes"),
    dict(nprobe=3),
    dict(nprobe=16),
    dict(nprobe=2, probe_order="distance"),
    dict(target_recall=0.5),
    dict(target_recall=0.9),
    dict(target_recall=0.99),
    {},
]


def same_but_for_ties(D: Floats, a: Any, b: Any, said: str) -> None:
    """Labels, where whole lists may have equal distances in other places, and
    others of those that are as far as the last."""
    for distances, x, y in zip(D, a, b, strict=True):
        x, y = (v[np.lexsort((v, distances))] for v in (x, y))
        sure = distances < distances[-1]
        np.testing.assert_array_equal(x[sure], y[sure], err_msg=said)


def test_one_plan_for_all_workers(
    cluster: Any,
    built: Any,
    base: Floats,
    queries: Floats,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At every setting what the one index finds, and with settings that no
    calibration has a say in what an index finds that never was in shards."""
    manifest = on_disk(built, tmp_path / "merged", queries)
    merged = faiss_ext.read_index(manifest.parent / "merged.index")
    whole = faiss_ext.read_index(built.parent / "trained.index")
    whole.add(base)
    monkeypatch.setattr(_dask_search, "QUERY_ROWS", 17)
    for settings, k, shards in itertools.product(
        PARAMETERS, (1, 10, 60), (None, 1, 3)
    ):
        said = f"{settings}, k = {k}, {shards} shards"
        params = faiss_ext.SearchParameters(**settings)
        D, labels = merged.search(queries, k, params=params)
        D2, labels2 = fdask.search(
            manifest, queries, k, params=settings, shards=shards
        )
        _, labels3 = fdask.search(
            manifest, queries, k, params=params, shards=shards
        )
        np.testing.assert_array_equal(labels3, labels2)
        np.testing.assert_array_equal(D2, D, err_msg=said)
        same_but_for_ties(D, labels2, labels, said)
        # Of many neighbours a part of one more list is compared, and lists
        # that were filled otherwise have other entries there.
        if "target_recall" not in settings and k <= 10:
            D, _ = whole.search(queries, k, params=params)
            np.testing.assert_allclose(D2, D, rtol=1e-5, err_msg=said)
    some: list[dict[str, Any]] = [
        dict(nprobe=4, sel=np.arange(0, 6000, 3)),
        dict(target_recall=0.9, sel=np.arange(6000) % 500 == 0),
        dict(nprobe=4, sel=range(100, 3000), probe_order="distance"),
        dict(nprobe=4, max_codes=20),
        dict(target_recall=0.9, max_codes=20, sel=range(50)),
        dict(nprobe=4, max_codes=300, probe_order="distance"),
    ]
    for settings, shards in itertools.product(some, (None, 1, 3)):
        said = f"{settings}, {shards} shards"
        D, labels = merged.search(
            queries, 10, params=faiss_ext.SearchParameters(**settings)
        )
        D2, labels2 = fdask.search(
            manifest, queries, 10, params=settings, shards=shards
        )
        np.testing.assert_array_equal(D2, D, err_msg=said)
        same_but_for_ties(D, labels2, labels, said)


def test_each_worker_has_its_shard(
    cluster: Any, built: Any, queries: Floats, tmp_path: pathlib.Path
) -> None:
    manifest = on_disk(built, tmp_path / "merged")
    client = distributed.get_client()
    client.run(_dask_search._lists_of.cache_clear)
    fdask.search(manifest, queries, 10, params=dict(nprobe=4))
    loaded = client.run(lambda: _dask_search._lists_of.cache_info().currsize)
    assert list(loaded.values()) == [1, 1]


@pytest.mark.filterwarnings("ignore")
def test_searches_when_a_worker_dies(
    cluster: Any,
    built: Any,
    queries: Floats,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = on_disk(built, tmp_path / "merged")
    params = dict(nprobe=4)
    expected = fdask.search(manifest, queries, 10, params=params)
    by_shards = fdask.search(manifest, queries, 10, nprobe=4)
    monkeypatch.setattr(_dask_search, "QUERY_ROWS", 1)
    for after in (0.0, 0.1):
        with a_worker_dies(cluster, after):
            D, labels = fdask.search(manifest, queries, 10, params=params)
            again = fdask.search(manifest, queries, 10, nprobe=4)
        np.testing.assert_array_equal(D, expected[0])
        np.testing.assert_array_equal(labels, expected[1])
        np.testing.assert_array_equal(again[1], by_shards[1])


@pytest.mark.filterwarnings("ignore")
def test_builds_when_a_worker_dies(
    cluster: Any, base: Floats, built: Any, tmp_path: pathlib.Path
) -> None:
    for after in (0.5, 1.0):
        with a_worker_dies(cluster, after):
            path = fdask.build(
                da.from_array(base, chunks=(800, 128)),
                "GMM16,Flat",
                tmp_path / f"killed{after}",
                block_rows=700,
                shard_rows=2100,
            )
        a, b = (json.loads(p.read_text()) for p in (path, built))
        assert [s["sha256"] for s in a["shards"]] == [
            s["sha256"] for s in b["shards"]
        ]


@pytest.mark.filterwarnings("ignore")
def test_a_nan_to_build_from_is_named(
    cluster: Any, base: Floats, tmp_path: pathlib.Path
) -> None:
    x = base[:3000].copy()
    # where no row of the sample to train on is
    x[2903, 5] = np.nan
    np.save(tmp_path / "bad.npy", x)
    with pytest.raises(ValueError, match="bad.npy, rows from 2800: .*row 103"):
        fdask.build(
            [tmp_path / "bad.npy"],
            "GMM4,Flat",
            tmp_path / "out",
            block_rows=700,
            sample_rows=200,
        )
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[Any]:
    """A folder on a file system of 300 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder],
        capture_output=True,
    )
    if made.returncode != 0:
        pytest.skip("mounts need rights that this process has not")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.filterwarnings("ignore")
def test_a_full_disk_leaves_nothing(
    cluster: Any, base: Floats, small_disk: Any
) -> None:
    with pytest.raises((ValueError, OSError), match="small/"):
        fdask.build(
            da.from_array(base, chunks=(800, 128)),
            "GMM16,Flat",
            small_disk,
            block_rows=700,
            shard_rows=2100,
        )
    assert not list(small_disk.iterdir())


def test_a_full_disk_leaves_no_merged_index(
    built: Any, small_disk: Any
) -> None:
    manifest = json.loads(built.read_text())
    for shard in [{"file": "trained.index"}, *manifest["shards"]]:
        (small_disk / shard["file"]).symlink_to(built.parent / shard["file"])
    shutil.copy(built, small_disk)
    with pytest.raises(ValueError, match="merged.ivfdata.*cannot be made"):
        fdask.merge(small_disk / "manifest.json", on_disk=True)
    assert not list(small_disk.glob("merged*"))
    assert "merged" not in json.loads(
        (small_disk / "manifest.json").read_text()
    )
