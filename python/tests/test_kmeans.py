"""k-means, against plain sums and faiss's own."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import Floats
from faiss_ext import Kmeans, _core


def lloyd(x: NDArray[Any], centroids: Any, niter: Any) -> Any:
    """Objectives before each update, as faiss reports them, and centroids."""
    x, c = x.astype(np.float64), centroids.astype(np.float64)
    objectives = []
    for _ in range(niter):
        squares = ((x[:, None] - c[None]) ** 2).sum(2)
        nearest = squares.argmin(1)
        objectives.append(squares.min(1).sum())
        c = np.stack([x[nearest == j].mean(0) for j in range(len(c))])
    return np.array(objectives), c


def test_is_lloyds_algorithm(base: Floats) -> None:
    x = base[:2000]
    k = Kmeans(128, 8, niter=6)
    k.train(x, init_centroids=x[:8])
    objectives, centroids = lloyd(x, x[:8], 6)
    np.testing.assert_allclose(k.obj, objectives, rtol=1e-5)
    np.testing.assert_allclose(k.centroids, centroids, rtol=1e-3, atol=1e-2)
    assert len(k.iteration_stats) == 6
    assert k.iteration_stats[-1]["obj"] == k.obj[-1]
    assert k.backend == "cpu"


def test_assign(base: Floats) -> None:
    k = Kmeans(128, 16, niter=4)
    k.train(base)
    D, I = k.assign(base[:500])
    squares = ((base[:500, None] - k.centroids[None]) ** 2).sum(2)
    np.testing.assert_allclose(D, squares.min(1), rtol=1e-4)
    assert (I == squares.argmin(1)).mean() > 0.99


def test_is_as_good_as_faiss(base: Floats) -> None:
    faiss = pytest.importorskip("faiss")
    theirs = faiss.Kmeans(128, 32, niter=10, seed=5)
    theirs.train(base)
    ours = Kmeans(128, 32, niter=10, seed=5)
    ours.train(base)
    mine = ours.assign(base)[0].sum()
    other = theirs.assign(base)[0].sum()
    assert mine < 1.02 * other


def test_weights_are_rows_repeated(base: Floats) -> None:
    x = base[:1000]
    w = np.arange(1000) % 3 + 1
    a, b = (
        Kmeans(128, 4, niter=5, max_points_per_centroid=1000) for _ in "ab"
    )
    a.train(x, weights=w, init_centroids=x[:4])
    b.train(np.repeat(x, w, axis=0), init_centroids=x[:4])
    np.testing.assert_allclose(a.centroids, b.centroids, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(a.obj, b.obj, rtol=1e-5)


def test_spherical(base: Floats) -> None:
    x = base - base.mean(axis=0)
    k = Kmeans(128, 8, niter=5, spherical=True)
    k.train(x)
    np.testing.assert_allclose(
        np.linalg.norm(k.centroids, axis=1), 1, rtol=1e-5
    )
    D, I = k.assign(x[:100])
    products = x[:100] @ k.centroids.T
    np.testing.assert_allclose(D, products.max(1), rtol=1e-3)


def test_nredo_keeps_the_best(base: Floats) -> None:
    x = base[:3000]
    one = [Kmeans(128, 16, niter=5, seed=s) for s in (3, 4, 5)]
    best = min(k.train(x) for k in one)
    three = Kmeans(128, 16, niter=5, nredo=3, seed=3)
    assert three.train(x) == pytest.approx(best)


def test_seed_and_sample(base: Floats) -> None:
    fits = []
    for seed in (1, 1, 2):
        k = Kmeans(128, 8, niter=3, seed=seed, max_points_per_centroid=50)
        k.train(base)
        fits.append(k.centroids)
    np.testing.assert_array_equal(fits[0], fits[1])
    assert not np.array_equal(fits[0], fits[2])


def test_other_dtypes(base_u8: NDArray[np.uint8]) -> None:
    a, b = Kmeans(128, 8, niter=3), Kmeans(128, 8, niter=3)
    a.train(base_u8[:2000])
    b.train(base_u8[:2000].astype(np.float64))
    np.testing.assert_array_equal(a.centroids, b.centroids)
    x = base_u8[:2000, :8]
    for other in (
        x.astype(">f4"),
        x.astype(np.longdouble),
        np.asfortranarray(x.astype(np.float16)),
        x > 20,
    ):
        a, b = Kmeans(8, 4, niter=2), Kmeans(8, 4, niter=2)
        a.train(other)
        b.train(np.ascontiguousarray(other, np.float32))
        np.testing.assert_array_equal(a.centroids, b.centroids)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_rows_are_checked_and_named(dtype: Any) -> None:
    x = np.random.default_rng(0).normal(size=(5000, 8)).astype(dtype)
    x[4321, 3] = np.nan
    for seed in range(5):
        with pytest.raises(ValueError, match="^x: row 4321 has the value nan"):
            Kmeans(8, 10, seed=seed).train(x)


def test_the_sample_is_of_rows_that_weigh() -> None:
    x = np.random.default_rng(0).normal(size=(5000, 8)).astype(np.float32)
    w = np.zeros(5000)
    w[100:120] = 1
    k = Kmeans(8, 10, niter=2, min_points_per_centroid=0)
    k.train(x, weights=w)
    np.testing.assert_allclose(
        k.assign(x[100:120])[0].sum(), k.obj[-1], rtol=0.5
    )
    w[:3000] = 1
    k.train(x, weights=w)
    with pytest.raises(ValueError, match="^weights: 0 are positive, expect"):
        k.train(x, weights=0 * w)
    w[7] = -1
    with pytest.raises(ValueError, match=r"^weights\[7\] = -1.*, expected"):
        k.train(x, weights=w)


def test_int_centroids(base: Floats) -> None:
    k = Kmeans(128, 8, niter=3, int_centroids=True, init="k-means++")
    k.train(base)
    np.testing.assert_array_equal(k.centroids, np.round(k.centroids))


def test_progress_and_verbose(
    base: Floats, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    k = Kmeans(128, 4, niter=3, verbose=True)
    k.train(base, progress=lambda i, objective: seen.append((i, objective)))
    assert [i for i, _ in seen] == [1, 2, 3]
    np.testing.assert_allclose([o for _, o in seen], k.obj)
    assert "iteration 3" in capsys.readouterr().out


def test_a_progress_that_raises_stops_it(base: Floats) -> None:
    def stop(i: Any, objective: Any) -> None:
        raise KeyError("enough")

    k = Kmeans(128, 4, niter=3)
    with pytest.raises(KeyError, match="enough"):
        k.train(base, progress=stop)
    assert k.centroids is None


def test_few_vectors_are_warned_of(base: Floats) -> None:
    with pytest.warns(UserWarning, match="expected at least 156"):
        Kmeans(128, 4, niter=1).train(base[:155])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Kmeans(128, 4, niter=1).train(base[:156])
        Kmeans(128, 4, niter=1, min_points_per_centroid=0).train(base[:9])


def test_wrong_input(base: Floats) -> None:
    with pytest.raises(ValueError, match="k = 0"):
        Kmeans(128, 0)
    with pytest.raises(TypeError, match="^seed = 'a', expected an integer$"):
        Kmeans(4, 2, seed="a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="init"):
        Kmeans(128, 4, init="best")
    for name in ("verbose", "spherical", "int_centroids"):
        with pytest.raises(TypeError, match=f"^{name} = 'no', expected True"):
            Kmeans(128, 4, **{name: "no"})  # type: ignore[arg-type]
        assert getattr(Kmeans(128, 4, **{name: np.True_}), name) is True  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^gpu = 'no', expected an integer"):
        Kmeans(128, 4, gpu="no")  # type: ignore[arg-type]
    k = Kmeans(128, 8)
    with pytest.raises(ValueError, match="x: 5 vectors"):
        k.train(base[:5])
    with pytest.raises(ValueError, match="^x: 3 columns, expected d = 128$"):
        k.train(base[:, :3])
    with pytest.raises(ValueError, match="weights"):
        k.train(base, weights=np.ones(3))
    with pytest.raises(ValueError, match="init_centroids"):
        k.train(base, init_centroids=base[:3])
    x = base[:100].copy()
    x[4, 5] = np.nan
    with pytest.raises(ValueError, match="row 4"):
        k.train(x)
    with pytest.raises(ValueError, match="^init_centroids: row 4 has"):
        k.train(base, init_centroids=x[: k.k])
    with pytest.raises(ValueError, match="train"):
        Kmeans(128, 8).assign(base)


@pytest.mark.skipif(_core.cuda_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(base: Floats) -> None:
    with pytest.raises(ValueError, match="^gpu = True: .*, expected False"):
        Kmeans(128, 8, gpu=True).train(base)


def test_its_index_searches_the_centroids(base: Floats) -> None:
    kmeans = Kmeans(base.shape[1], 8, niter=2)
    with pytest.raises(AttributeError, match="call train first"):
        _ = kmeans.index
    kmeans.train(base)
    D, labels = kmeans.index.search(base, 1)
    np.testing.assert_array_equal(labels[:, 0], kmeans.assign(base)[1])
    np.testing.assert_array_equal(
        kmeans.index.reconstruct_n(0, 8), kmeans.centroids
    )
