"""Ctrl-C, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

PROLOGUE = """
import signal
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
more = np.tile(x, (20, 1))
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
    print("interrupted", flush=True)
    check()
    print("fine", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT")
@pytest.mark.parametrize(
    "work",
    [TRAIN, ADD, SEARCH, ESTIMATOR, KMEANS],
    ids="train add search em kmeans".split(),
)
def test_ctrl_c(work, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(work) + EPILOGUE],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=dict(os.environ, OMP_NUM_THREADS="2"),
    )
    watchdog = threading.Timer(200, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "start\n"
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        begin = time.perf_counter()
        assert process.stdout.readline() == "interrupted\n"
        # A second on an idle machine; ours may be busy.
        assert time.perf_counter() - begin < 10
        assert process.stdout.readline() == "fine\n"
        assert process.wait(60) == 0
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
