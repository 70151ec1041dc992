"""The public interface with types, for mypy --strict and pyright; it runs,
too."""

from __future__ import annotations

import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

import faiss_ext

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
HERE = pathlib.Path(__file__)


def vectors() -> Floats:
    random = np.random.default_rng(0)
    return random.normal(size=(1000, 8)).astype(np.float32)


def test_an_index(tmp_path: pathlib.Path) -> None:
    x = vectors()
    index: faiss_ext.Index = faiss_ext.index_factory(8, "GMM8,Flat")
    index.cp.niter = 3
    index.train(x)
    blocks: Iterator[Floats] = iter([x[:500], x[500:]])
    index.add(blocks)
    index.add_with_ids(x[:3], [2000, 2001, 2002])
    index.target_recall = 0.9
    index.nprobe = 4
    sel: faiss_ext.IDSelector = faiss_ext.IDSelectorRange(0, 1000)
    params = faiss_ext.SearchParameters(nprobe=8, sel=~sel)
    D: Floats
    I: Ids  # noqa: E741
    D, I = index.search(x, 3, params=params)
    assert (I[I >= 0] >= 1000).all()
    D, I = index.search(x, 3, D=D, I=I)
    lims, D, I = index.range_search(x[:5], 1.0)
    assert int(lims[-1]) == len(D) == len(I)
    D, I, R = index.search_and_reconstruct(x[:5], 2)
    assert R.shape == (5, 2, 8)
    removed: int = index.remove_ids(range(2000, 2003))
    assert removed == 3 and len(index) == index.ntotal == 1000
    index.set_direct_map("hashtable")
    index.update_vectors([0], x[:1])
    one: Floats = index.reconstruct(0)
    np.testing.assert_array_equal(one, x[0])
    index.calibrate(x[:50], k=5)
    choice = index.calibration.choose(0.9)
    assert choice.recall > 0 and choice.cost > 0
    due: bool = index.maintenance_due
    assert not due
    mixture: faiss_ext.Mixture = index.mixture()
    assert mixture.means.shape == (8, 8)
    sizes: Ids = index.list_sizes()
    assert int(sizes.sum()) == 1000
    path = tmp_path / "index"
    faiss_ext.write_index(index, path)
    again: faiss_ext.Index = faiss_ext.read_index(path)
    data: NDArray[np.uint8] = faiss_ext.serialize_index(again)
    copy = faiss_ext.clone_index(faiss_ext.deserialize_index(data))
    assert copy.factory_string == "GMM8,Flat"
    stats: dict[str, int] = faiss_ext.search_stats()
    assert stats["nq"] > 0


def test_a_swap() -> None:
    x = vectors()
    index = faiss_ext.index_factory(8, "IVF8,Flat", faiss_ext.METRIC_L2)
    index.train(x)
    index.add(x)
    swapped: faiss_ext.Index = faiss_ext.swap_to_gmm(index, "diag")
    assert swapped.covariance_type == "diag"


def test_kmeans() -> None:
    kmeans = faiss_ext.Kmeans(8, 4, niter=2, seed=1)
    objective: float = kmeans.train(vectors())
    D, I = kmeans.assign(vectors())
    assert objective > 0 and D.shape == I.shape == (1000,)
    assert kmeans.centroids is not None


def test_the_estimator() -> None:
    pytest.importorskip("sklearn")
    from faiss_ext import GaussianMixture

    x = vectors()
    m = GaussianMixture(2, covariance_type="full", random_state=0)
    labels: NDArray[np.int64] = m.fit(x).predict(x)
    assert labels.shape == (1000,)
    score: float = m.score(x)
    bic: float = m.bic(x)
    drawn, y = m.sample(10)
    assert drawn.shape == (10, 8) and y.shape == (10,)
    assert np.isfinite([score, bic]).all()
    means: NDArray[np.float64] = m.means_
    assert means.shape == (2, 8)


def check(folder: pathlib.Path, *command: str) -> None:
    # Elsewhere: the project's own folder has one of the package's name.
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=500, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_mypy_is_content(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("mypy")
    check(tmp_path, sys.executable, "-m", "mypy", "--strict", str(HERE))


@pytest.mark.slow
def test_mypy_sees_what_cannot_be(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "wrong.py").write_text(
        "import faiss_ext\n"
        "from faiss_ext import Foo\n"
        "index = faiss_ext.indx_factory(3, 'x')\n"
        "faiss_ext.index_factory(3, 'Flat').d = 3\n"
        "faiss_ext.index_factory(3, 'Flat').nprobe = 3\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "wrong.py"],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=tmp_path,
    )
    for line, found in ((2, True), (3, True), (4, True), (5, False)):
        assert (f"wrong.py:{line}: error" in done.stdout) is found, done.stdout


@pytest.mark.slow
def test_pyright_is_content(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("pyright")
    (tmp_path / "pyrightconfig.json").write_text(
        '{"typeCheckingMode": "standard"}'
    )
    shutil.copy(HERE, tmp_path)
    check(
        tmp_path,
        sys.executable,
        "-m",
        "pyright",
        "--pythonpath",
        sys.executable,
        "--project",
        str(tmp_path),
    )
