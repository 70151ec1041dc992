"""The estimator, against scikit-learn's and against plain sums."""

from __future__ import annotations

import pathlib
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import Floats, blobs

sklearn = pytest.importorskip("sklearn")

from scipy.special import logsumexp  # noqa: E402
from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.mixture import GaussianMixture as Reference  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from faiss_ext import GaussianMixture, _core  # noqa: E402

KINDS = ("spherical", "diag", "tied_spherical", "full", "tied")


@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [GaussianMixture(covariance_type=t) for t in KINDS]
)
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def start(X: NDArray[Any], k: Any, kind: Any) -> Any:
    d = X.shape[1]
    identity = {
        "spherical": np.ones(k),
        "diag": np.ones((k, d)),
        "tied_spherical": np.ones(()),
        "full": np.tile(np.eye(d), (k, 1, 1)),
        "tied": np.eye(d),
    }[kind]
    return {
        "means_init": X[:k],
        "weights_init": np.full(k, 1 / k),
        "precisions_init": identity / X.var(),
    }


def correlated(n: Any = 3000, offset: Any = 0.0, seed: Any = 0) -> Any:
    """Blobs that are drawn out in directions of their own."""
    rng = np.random.default_rng(seed)
    X = blobs(n=n, seed=seed)
    X[: n // 2] = X[: n // 2] @ rng.normal(size=(7, 7))
    return X @ rng.normal(size=(7, 7)) + offset


def reference_step(
    X: NDArray[Any], weights: Any, means: Any, covariances: Any, reg: Any
) -> Any:
    """One iteration of a tied spherical mixture, by the book."""
    n, d = X.shape
    squares = ((X[:, None, :] - means[None]) ** 2).sum(2)
    joint = (
        np.log(weights)
        - 0.5 * d * np.log(2 * np.pi * covariances)
        - 0.5 * squares / covariances
    )
    log_prob: Any = logsumexp(joint, axis=1)
    r = np.exp(joint - log_prob[:, None])
    n_k = r.sum(0) + 10 * np.finfo(float).eps
    means = r.T @ X / n_k[:, None]
    squares = ((X[:, None, :] - means[None]) ** 2).sum(2)
    covariances = (r * squares).sum() / (n * d) + reg
    return n_k / n_k.sum(), means, covariances, log_prob.mean()


@pytest.mark.parametrize("kind", ["spherical", "diag", "full", "tied"])
@pytest.mark.parametrize("offset", [0, 1e4])
@pytest.mark.parametrize("reg_covar", [1e-6, 0.1])
@pytest.mark.parametrize("data", [blobs, correlated])
def test_agrees_with_scikit_learn(
    kind: Any, offset: Any, reg_covar: Any, data: Any
) -> None:
    X = data(offset=offset)
    options: dict[str, Any] = dict(
        n_components=5,
        covariance_type=kind,
        max_iter=20,
        tol=0,
        reg_covar=reg_covar,
        **start(X, 5, kind),
    )
    a = Reference(**options).fit(X)
    b = GaussianMixture(**options).fit(X)
    for name in (
        "weights_",
        "means_",
        "covariances_",
        "precisions_",
        "precisions_cholesky_",
        "lower_bound_",
    ):
        mine, other = getattr(b, name), getattr(a, name)
        # Elements of a matrix may be 0: they are compared with the largest.
        least = 1e-4 * np.abs(other).max() if np.ndim(other) > 1 else 0
        np.testing.assert_allclose(
            mine, other, rtol=1e-4, atol=least, err_msg=name
        )
    assert b.n_iter_ == a.n_iter_ == 20
    np.testing.assert_allclose(
        b.score_samples(X), a.score_samples(X), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(
        b.predict_proba(X), a.predict_proba(X), atol=2e-4
    )
    assert (b.predict(X) == a.predict(X)).mean() > 0.999
    for name in ("bic", "aic"):
        assert getattr(b, name)(X) == pytest.approx(
            getattr(a, name)(X), rel=1e-4
        )


def test_tied_spherical_is_what_the_book_says() -> None:
    X = blobs()
    s = start(X, 5, "tied_spherical")
    m = GaussianMixture(
        5, covariance_type="tied_spherical", max_iter=20, tol=0, **s
    ).fit(X)
    weights, means = s["weights_init"], s["means_init"]
    covariances = 1 / s["precisions_init"]
    bound = 0.0
    for _ in range(20):
        weights, means, covariances, bound = reference_step(
            X, weights, means, covariances, 1e-6
        )
    np.testing.assert_allclose(m.weights_, weights, rtol=1e-4)
    np.testing.assert_allclose(m.means_, means, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(m.covariances_, covariances, rtol=1e-4)
    assert m.lower_bound_ == pytest.approx(bound, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_finds_what_data_were_drawn_from(kind: Any) -> None:
    X = blobs(n=6000, k=3, seed=3)
    m = GaussianMixture(3, covariance_type=kind, random_state=0, n_init=3)
    m.fit(X)
    assert m.converged_
    k = 1 if kind.startswith("tied") else 3
    expected = Reference(
        k, covariance_type="spherical", random_state=0, n_init=3
    ).fit(X)
    assert m.score(X) > expected.score(X) - 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_never_falls(kind: Any) -> None:
    m = GaussianMixture(
        6, covariance_type=kind, max_iter=30, tol=0, random_state=1
    ).fit(blobs())
    assert (np.diff(m.lower_bounds_) > -1e-5).all()
    assert m.lower_bound_ == m.lower_bounds_[-1]


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_the_same_as_rows_repeated(kind: Any) -> None:
    X = blobs(n=500)
    w = np.random.default_rng(1).integers(0, 4, size=500)
    a = GaussianMixture(3, covariance_type=kind, random_state=0)
    b: Any = clone(a)
    a.fit(X, sample_weight=w)
    b.fit(np.repeat(X, w, axis=0))
    np.testing.assert_allclose(a.means_, b.means_, rtol=1e-6)
    np.testing.assert_allclose(a.covariances_, b.covariances_, rtol=1e-6)


def test_rows_without_weight_have_no_say_in_units() -> None:
    X = np.concatenate([np.full((2000, 4), -1e12), blobs(n=70000)[:, :4]])
    w = np.ones(len(X))
    w[:2000] = 0
    s = start(X[2000:], 3, "spherical")
    a = GaussianMixture(3, max_iter=5, tol=0, **s).fit(X, sample_weight=w)
    b = GaussianMixture(3, max_iter=5, tol=0, **s).fit(X[2000:])
    np.testing.assert_allclose(a.means_, b.means_, rtol=1e-4, atol=1e-4)
    assert a.lower_bound_ == pytest.approx(b.lower_bound_, rel=1e-5)


@pytest.mark.parametrize("kind", ["spherical", "diag", "tied_spherical"])
def test_one_row_far_away_leaves_the_others_their_variances(kind: Any) -> None:
    X = correlated()
    far = 3e8 * X.std()

    def fitted(X: Any, k: Any) -> Any:
        options = start(correlated(), k, kind)
        options["means_init"] = X[-k:]
        m = GaussianMixture(
            k,
            covariance_type=kind,
            max_iter=10,
            tol=0,
            backend="cpu",
            **options,
        )
        return m.fit(X).covariances_

    alone = fitted(X, 2)
    beside = fitted(np.vstack([X, np.full(7, far)]), 3)
    if kind != "tied_spherical":
        beside = beside[:2]
    np.testing.assert_allclose(
        beside, alone, rtol=0.02, atol=0.02 * alone.max()
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_likelihood_of_a_row_far_away_that_is_its_own_mean(
    dtype: Any,
) -> None:
    X = np.random.default_rng(0).standard_normal((200, 15))
    X[100] = 1.2345678e6
    X = X.astype(dtype)
    m = GaussianMixture(
        2,
        means_init=X[[0, 100]],
        weights_init=[0.995, 0.005],
        precisions_init=[1, 1],
        max_iter=3,
        tol=0,
    ).fit(X)
    expected = -np.log(200) - 7.5 * np.log(2 * np.pi * m.reg_covar)
    assert m.score_samples(X[[100]])[0] == pytest.approx(expected, abs=1e-3)
    assert m.score(X) == pytest.approx(m.lower_bound_, abs=1e-3)


def test_weights_of_large_data() -> None:
    X = blobs(n=50000, k=3)
    w = np.random.default_rng(1).integers(1, 3, size=50000)
    s = start(X, 3, "spherical")
    a = GaussianMixture(3, max_iter=5, tol=0, **s).fit(X, sample_weight=w)
    b = GaussianMixture(3, max_iter=5, tol=0, **s).fit(np.repeat(X, w, 0))
    np.testing.assert_allclose(a.means_, b.means_, rtol=1e-4, atol=1e-4)
    assert a.lower_bound_ == pytest.approx(b.lower_bound_, rel=1e-5)


@pytest.mark.parametrize("dtype", ["f2", "f4", ">f8", "u1", "i2", "i8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dtypes_and_orders(dtype: Any, order: Any) -> None:
    X = np.round(blobs() * 8 + 100).clip(0, 255)
    options: dict[str, Any] = dict(
        max_iter=5, tol=0, **start(X, 4, "spherical")
    )
    a = GaussianMixture(4, **options).fit(X)
    Z = np.asarray(X, dtype, order=order)
    b = GaussianMixture(4, **options).fit(Z)
    np.testing.assert_allclose(a.means_, b.means_, rtol=1e-5)
    np.testing.assert_array_equal(a.predict(X), b.predict(Z))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_memmap(dtype: Any, tmp_path: pathlib.Path) -> None:
    X = np.round(blobs(n=40000) * 8 + 100).clip(0, 255).astype(dtype)
    X.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", dtype, "r", shape=X.shape)
    options: dict[str, Any] = dict(max_iter=3, tol=0, **start(X, 4, "diag"))
    a = GaussianMixture(4, covariance_type="diag", **options).fit(X)
    b = GaussianMixture(4, covariance_type="diag", **options).fit(mapped)
    np.testing.assert_array_equal(a.means_, b.means_)
    np.testing.assert_array_equal(a.predict(X), b.predict(mapped))


def test_random_state_repeats() -> None:
    X = blobs(n=60000)
    fits = [
        GaussianMixture(8, random_state=s, max_iter=3).fit(X).means_
        for s in (0, 0, 1)
    ]
    np.testing.assert_array_equal(fits[0], fits[1])
    assert not np.array_equal(fits[0], fits[2])


@pytest.mark.parametrize("init", ["kmeans", "k-means++", "random_from_data"])
def test_inits(init: Any) -> None:
    X = blobs()
    m = GaussianMixture(4, init_params=init, random_state=0, n_init=4).fit(X)
    assert m.score(X) > Reference(1).fit(X).score(X)


def test_warm_start_goes_on_from_an_earlier_version() -> None:
    """A model that was pickled before its kind was kept beside it."""
    X = blobs()
    m = GaussianMixture(4, warm_start=True, random_state=0).fit(X)
    del m._fitted_type
    assert m.fit(X).converged_


def test_warm_start_goes_on() -> None:
    X = blobs()
    s = start(X, 4, "spherical")
    m = GaussianMixture(4, max_iter=3, tol=0, warm_start=True, **s)
    m.fit(X).fit(X)
    whole = GaussianMixture(4, max_iter=6, tol=0, **s).fit(X)
    np.testing.assert_allclose(m.means_, whole.means_, rtol=1e-6)


@pytest.mark.parametrize("kind", ["spherical", "full"])
def test_a_loop_of_warm_starts_ends(kind: Any) -> None:
    X = blobs()
    whole = GaussianMixture(3, covariance_type=kind, random_state=0).fit(X)
    m = GaussianMixture(
        3, covariance_type=kind, random_state=0, max_iter=1, warm_start=True
    )
    fits = 0
    while fits < 100 and not getattr(m, "converged_", False):
        m.fit(X)
        fits += 1
    assert fits == whole.n_iter_
    np.testing.assert_allclose(m.means_, whole.means_, rtol=1e-6)


def test_predict_proba_into_a_map(tmp_path: pathlib.Path) -> None:
    X = blobs()
    m = GaussianMixture(4, random_state=0).fit(X)
    out = np.memmap(tmp_path / "p", np.float64, "w+", shape=(3000, 4))
    assert m.predict_proba(X, out=out) is out
    np.testing.assert_array_equal(out, m.predict_proba(X))
    np.testing.assert_allclose(out.sum(axis=1), 1)
    np.testing.assert_array_equal(out.argmax(axis=1), m.predict(X))


@pytest.mark.parametrize("kind", KINDS)
def test_sample_has_the_moments(kind: Any) -> None:
    X = blobs()
    m = GaussianMixture(3, covariance_type=kind, random_state=0).fit(X)
    drawn, y = m.sample(60000)
    assert drawn.shape == (60000, 7)
    np.testing.assert_allclose(np.bincount(y) / 60000, m.weights_, atol=0.01)
    for c in range(3):
        rows = drawn[y == c]
        expected = matrix_of(m, c)
        scale = np.trace(expected) / 7
        np.testing.assert_allclose(rows.mean(0), m.means_[c], atol=0.15)
        np.testing.assert_allclose(
            np.cov(rows.T), expected, rtol=0.1, atol=0.1 * scale
        )


def matrix_of(m: Any, c: Any) -> Any:
    """The covariance matrix of a component, whatever the kind."""
    covariances, d = m.covariances_, m.n_features_in_
    if m.covariance_type in ("full", "tied"):
        return covariances[c] if m.covariance_type == "full" else covariances
    if m.covariance_type == "tied_spherical":
        return covariances * np.eye(d)
    return covariances[c] * np.eye(d)


@pytest.mark.parametrize("kind", KINDS)
def test_free_parameters(kind: Any) -> None:
    X = blobs(d=4, k=3)
    m = GaussianMixture(3, covariance_type=kind, random_state=0).fit(X)
    covariances = {
        "spherical": 3,
        "diag": 12,
        "tied_spherical": 1,
        "full": 30,
        "tied": 10,
    }[kind]
    expected = -2 * m.score(X) * len(X) + 2 * (2 + 12 + covariances)
    assert m.aic(X) == pytest.approx(expected, rel=1e-9)
    expected += (np.log(len(X)) - 2) * (2 + 12 + covariances)
    assert m.bic(X) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kind", ["spherical", "diag", "full", "tied"])
def test_one_dimension(kind: Any) -> None:
    X = blobs(d=1, k=3)
    options: dict[str, Any] = dict(
        n_components=3,
        covariance_type=kind,
        max_iter=20,
        tol=0,
        **start(X, 3, kind),
    )
    a = Reference(**options).fit(X)
    b = GaussianMixture(**options).fit(X)
    for name in ("weights_", "means_", "covariances_", "lower_bound_"):
        mine, other = getattr(b, name), getattr(a, name)
        np.testing.assert_allclose(mine, other, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("kind", ["full", "tied"])
def test_matrices_of_more_dimensions_than_a_kernel_has_lanes(
    kind: Any, base: Floats
) -> None:
    """Real data, from the same start as scikit-learn."""
    X = base[:2000, :40] + np.random.default_rng(0).normal(size=(2000, 40))
    options: dict[str, Any] = dict(
        n_components=4,
        covariance_type=kind,
        max_iter=20,
        tol=0,
        **start(X, 4, kind),
    )
    a = Reference(**options).fit(X)
    b = GaussianMixture(**options).fit(X)
    for name in ("weights_", "means_", "covariances_", "lower_bound_"):
        mine, other = getattr(b, name), getattr(a, name)
        least = 1e-4 * np.abs(other).max()
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=least)


def test_a_matrix_that_is_not_definite() -> None:
    X = blobs()
    X[:, 3] = X[:, 2]
    for kind in ("full", "tied"):
        with pytest.raises(ValueError, match="not positive definite"):
            GaussianMixture(2, covariance_type=kind, reg_covar=0).fit(X)
    for wrong in (np.zeros((7, 7)), np.triu(np.ones((7, 7)))):
        with pytest.raises(ValueError, match="precisions_init: expected sym"):
            GaussianMixture(
                2, covariance_type="tied", precisions_init=wrong
            ).fit(X)


def test_fit_predict_is_fit_and_predict() -> None:
    X = blobs()
    a = GaussianMixture(4, random_state=0)
    b: Any = clone(a)
    np.testing.assert_array_equal(a.fit_predict(X), b.fit(X).predict(X))


def test_pickle_and_pipeline() -> None:
    X = blobs()
    m = make_pipeline(StandardScaler(), GaussianMixture(3, random_state=0))
    y = m.fit(X).predict(X)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(m)).predict(X), y)


def test_statistics_are_pickled_as_arrays() -> None:
    X = blobs(n=50).astype(np.float32)
    center, scale, _ = _core.frame_of(X, None)
    engine = _core.EStepEngine(X, None, center, scale, "cpu")
    stats = engine.accumulate(
        "diag",
        X[:2],
        np.ones((2, 7), np.float32),
        np.log([0.5, 0.5]).astype(np.float32),
        False,
    )
    state = stats.__getstate__()
    assert sum(isinstance(v, np.ndarray) for v in state) == 3
    # as earlier versions wrote it
    of_lists = tuple(
        v.tolist() if isinstance(v, np.ndarray) else v for v in state
    )
    for given in (state, of_lists):
        back = _core.SufficientStats.__new__(_core.SufficientStats)
        back.__setstate__(given)
        for name in ("n_k", "sum_x", "sum_x2", "weight", "objective"):
            np.testing.assert_array_equal(
                getattr(back, name), getattr(stats, name)
            )


def test_one_component_is_the_moments() -> None:
    X = blobs()
    m = GaussianMixture(1, reg_covar=0).fit(X)
    np.testing.assert_allclose(m.means_[0], X.mean(0), rtol=1e-6)
    assert m.covariances_[0] == pytest.approx(X.var(0).mean(), rel=1e-5)
    assert m.score(X) == pytest.approx(
        Reference(1, covariance_type="spherical").fit(X).score(X), rel=1e-6
    )


def test_constant_and_duplicate_rows() -> None:
    X = np.repeat([[1.0, 2.0], [5.0, 6.0]], 20, axis=0)
    m = GaussianMixture(2, random_state=0).fit(X)
    assert len(set(m.predict(X))) == 2
    m = GaussianMixture(3, random_state=0).fit(X)  # two distinct rows
    assert np.isfinite(m.score(X))
    with pytest.raises(ValueError, match="variance is 0"):
        GaussianMixture(2, reg_covar=0, random_state=0).fit(X)


def test_it_says_when_it_did_not_converge() -> None:
    with pytest.warns(ConvergenceWarning):
        GaussianMixture(4, max_iter=1, random_state=0).fit(blobs())


def test_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    GaussianMixture(2, verbose=1, verbose_interval=1, max_iter=2, tol=0).fit(
        blobs()
    )
    out = capsys.readouterr().out
    assert "Initialization 0" in out
    assert "Iteration 2: lower bound" in out


@pytest.mark.parametrize("unit", [1e-8, 1e-4, 1e4, 1e8])
def test_columns_may_have_any_unit(unit: float) -> None:
    X = np.random.default_rng(0).normal(size=(2000, 4))
    X[:, 0] *= unit
    ours = GaussianMixture(1, covariance_type="diag", reg_covar=0).fit(X)
    np.testing.assert_allclose(ours.covariances_[0], X.var(axis=0), rtol=1e-4)
