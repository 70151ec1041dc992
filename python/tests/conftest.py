"""Data and indexes that tests share."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import faiss_ext

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
DATA = pathlib.Path(__file__).parents[2] / "bench" / "data"


#: Files all of whose tests are slow: processes, clusters, stores.
SLOW = (
    "test_dask.py",
    "test_dask_errors.py",
    "test_dask_network.py",
    "test_examples.py",
    "test_interrupt.py",
    "test_langchain.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)


@contextlib.contextmanager
def interrupted_in_its_work(
    command: list[str], **options: Any
) -> Iterator[Any]:
    """A process that has said "start" and, half a second later, got SIGINT."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, **options
    )
    watchdog = threading.Timer(200, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "start\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()


def bad(base: Floats, what: str) -> Floats:
    """Vectors whose row 7 is not finite."""
    x = base[:50].copy()
    if what == "nan":
        x[7, 3] = np.nan
    elif what == "inf":
        x[7, 3] = np.inf
    return x


def read_u8bin(name: str) -> np.ndarray:
    n, d = np.fromfile(DATA / name, np.int32, 2)
    return np.fromfile(DATA / name, np.uint8, offset=8).reshape(n, d)


@pytest.fixture(scope="session")
def base_u8() -> np.ndarray:
    return read_u8bin("sift_sample_base.u8bin")[:6000]


@pytest.fixture(scope="session")
def base(base_u8: NDArray[np.uint8]) -> np.ndarray:
    return base_u8.astype(np.float32)


@pytest.fixture(scope="session")
def queries() -> np.ndarray:
    return read_u8bin("sift_sample_query.u8bin")[:200].astype(np.float32)


@pytest.fixture(scope="session")
def truth(base: Floats, queries: Floats) -> np.ndarray:
    """Ids of the ten nearest vectors, by every distance there is."""
    q, x = queries.astype(np.float64), base.astype(np.float64)
    distances = (q**2).sum(1)[:, None] - 2 * q @ x.T + (x**2).sum(1)[None, :]
    return np.argsort(distances, axis=1, kind="stable")[:, :10]


def recall(found: NDArray[Any], truth: NDArray[Any]) -> float:
    k = int(truth.shape[1])
    hits = [len(set(f) & set(t)) for f, t in zip(found, truth, strict=True)]
    return float(np.mean(hits)) / k


def make(
    factory: str, x: np.ndarray, metric: int = faiss_ext.METRIC_L2
) -> Any:
    index = faiss_ext.index_factory(x.shape[1], factory, metric)
    if index.has_mixture:
        index.cp.niter = 5
    index.train(x)
    return index


def fill(index: faiss_ext.Index, x: np.ndarray) -> None:
    """FAISS's IndexIDMap wants ids."""
    if index.factory_string.startswith("IDMap"):
        index.add_with_ids(x, np.arange(len(x)))
    else:
        index.add(x)


@pytest.fixture(scope="session")
def trained_once(base: Floats) -> Any:
    return make("GMM32,Flat", base)


@pytest.fixture(scope="session")
def filled_once(base: Floats, trained_once: faiss_ext.Index) -> Any:
    index = faiss_ext.clone_index(trained_once)
    index.add(base)
    return index


@pytest.fixture
def trained(trained_once: faiss_ext.Index) -> Any:
    """GMM32,Flat without vectors, the test's own."""
    return faiss_ext.clone_index(trained_once)


@pytest.fixture
def filled(filled_once: faiss_ext.Index) -> Any:
    """GMM32,Flat with all of base, calibrated, the test's own."""
    return faiss_ext.clone_index(filled_once)


def blobs(
    n: Any = 3000, d: Any = 7, k: Any = 4, offset: Any = 0.0, seed: Any = 0
) -> Any:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(k, d)) * 3 + offset
    scales = rng.uniform(0.5, 2, size=k)
    y = rng.integers(0, k, size=n)
    return means[y] + scales[y, None] * rng.normal(size=(n, d))
