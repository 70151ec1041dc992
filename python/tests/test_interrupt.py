"""Ctrl-C, in a process of its own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap
import time
from typing import Any

import pytest

from conftest import interrupted_in_its_work

PROLOGUE = """
import signal
import time
import numpy as np
import faiss_ext
# A shell starts what runs in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
rng = np.random.default_rng(0)
x = rng.normal(size=(60000, 64)).astype(np.float32)
index = faiss_ext.index_factory(64, "GMM256,Flat")
index.cp.niter = 1
"""

TRAIN = """
index.cp.niter = 100000
index.cp.max_points_per_centroid = 10**6
def work():
    index.train(x)
def check():
    assert not index.is_trained
    index.cp.niter = 1
    index.train(x[:5000])
"""

ADD = """
index.train(x[:10000])
index.add(x)
index.nprobe = 256
before = index.search(x[:10], 5)[1]
more = np.tile(x, (30, 1))
ids = np.arange(len(more)) + 10**6
def work():
    index.add_with_ids(more, ids)
def check():
    # What is in is whole, and in the order in which it came.
    added = index.ntotal - len(x)
    assert added < len(more) and added % 32768 == 0, added
    index.remove_ids(range(10**6, 10**7))
    assert index.ntotal == len(x)
    assert (index.search(x[:10], 5)[1] == before).all()
    index.add(x[:100])
    assert index.ntotal == len(x) + 100
"""

BEHIND = """
index = faiss_ext.index_factory(64, "PCA32,GMM256,SQ8,RFlat")
index.cp.niter = 1
index.train(x[:10000])
def work():
    while True:
        index.reset()
        index.add(x)
def check():
    # What is counted is in, in the index and in what refines it.
    n = index.ntotal
    assert n in (0, 32768, len(x)) and n == index.list_sizes().sum(), n
    index.add(x[:100])
    assert index.ntotal == n + 100
    assert (index.search(x[:10], 1)[0] == 0).all()
"""

SEARCH = """
index.train(x[:10000])
index.add(x)
index.nprobe = 256
before = index.search(x[:10], 5)[1]
def work():
    while True:
        index.search(np.tile(x, (4, 1)), 100)
def check():
    assert (index.search(x[:10], 5)[1] == before).all()
"""

CALIBRATE = """
index.train(x[:10000])
index.add(x)
before = index.calibration.report()
def work():
    while True:
        index.calibrate(x[:20000], k=100)
def check():
    # All of a calibration or nothing of it.
    c = index.calibration
    assert c.report() == before or (c.nq == 20000 and not c.own_queries)
    index.target_recall = 0.9
    assert index.search(x[:10], 1)[1].min() >= 0
    index.calibrate(x[:100], k=5)
"""

ESTIMATOR = """
from faiss_ext import GaussianMixture
m = GaussianMixture(200, max_iter=10**6, tol=0, init_params="random_from_data")
def work():
    m.fit(x)
def check():
    assert m.set_params(max_iter=1, n_components=2, tol=1e9).fit(x[:999])
"""

KMEANS = """
kmeans = faiss_ext.Kmeans(64, 200, niter=10**6)
def work():
    kmeans.train(x)
def check():
    assert kmeans.centroids is None
"""

EPILOGUE = """
print("start", flush=True)
try:
    work()
except KeyboardInterrupt:
    print("interrupted", time.process_time(), flush=True)
    check()
    print("fine", flush=True)
"""


def processor_seconds(pid: int) -> float:
    """What the process has used so far, in all threads."""
    fields = (
        pathlib.Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()
    )
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize(
    "work",
    [TRAIN, ADD, BEHIND, SEARCH, CALIBRATE, ESTIMATOR, KMEANS],
    ids="train add behind search calibrate em kmeans".split(),
)
def test_ctrl_c(work: Any, tmp_path: pathlib.Path) -> None:
    with interrupted_in_its_work(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(work) + EPILOGUE],
        cwd=tmp_path,
        env=dict(os.environ, OMP_NUM_THREADS="2"),
    ) as process:
        begin = time.perf_counter()
        used = processor_seconds(process.pid)
        word, used_until = process.stdout.readline().split()
        assert word == "interrupted"
        # On a machine that others keep busy a second of its own lasts longer.
        wall = time.perf_counter() - begin
        own = float(used_until) - used
        print(f"{wall:.2f} s, {own:.2f} s of processors")
        assert min(wall, own) < 1
        assert process.stdout.readline() == "fine\n"
        assert process.wait(60) == 0


AT_THE_END = """
import threading
import time
import numpy as np
import faiss_ext
x = np.random.default_rng(0).normal(size=(20000, 32)).astype(np.float32)
index = faiss_ext.index_factory(32, "GMM64,Flat")
index.train(x)
index.add(x)
index.nprobe = 64
kmeans = faiss_ext.Kmeans(32, 64, niter=10**6)
def work():
    while True:
        {call}
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.3)
"""


@pytest.mark.parametrize(
    "call",
    ["index.search(x[:1], 5)", "index.search(x, 50)", "kmeans.train(x)"],
)
def test_daemon_threads_end_with_the_process(call: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END.format(call=call)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
