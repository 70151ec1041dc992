"""Wrong input to the estimator: named, and the fitted mixture stays."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import pytest

from conftest import Floats, blobs

sklearn = pytest.importorskip("sklearn")

from sklearn.exceptions import ConvergenceWarning, NotFittedError  # noqa: E402

from faiss_ext import GaussianMixture, _core  # noqa: E402


@pytest.fixture(autouse=True)
def quiet() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"n_components": 0}, ValueError, "n_components"),
        ({"n_components": "two"}, TypeError, "n_components"),
        ({"covariance_type": "round"}, ValueError, "covariance_type"),
        ({"covariance_type": ["full"]}, ValueError, "covariance_type = "),
        ({"verbose_interval": 0}, ValueError, "verbose_interval = 0"),
        ({"verbose_interval": "a"}, TypeError, "verbose_interval = 'a'"),
        ({"verbose": "no"}, TypeError, "^verbose = 'no', expected an int"),
        ({"verbose": -1}, ValueError, "^verbose = -1, expected at least 0"),
        ({"warm_start": "no"}, TypeError, "^warm_start = 'no', expected Tr"),
        ({"backend": None}, ValueError, "backend = None"),
        ({"reg_covar": -1}, ValueError, "reg_covar"),
        ({"tol": -1}, ValueError, "tol"),
        ({"max_iter": -1}, ValueError, "max_iter"),
        ({"n_init": 0}, ValueError, "n_init"),
        ({"init_params": "best"}, ValueError, "init_params"),
        ({"backend": "tpu"}, ValueError, "backend"),
        ({"means_init": [[0.0]]}, ValueError, "means_init"),
        ({"means_init": np.full((2, 7), np.nan)}, ValueError, "means_init"),
        ({"weights_init": [0.5, 0.6]}, ValueError, "weights_init"),
        ({"weights_init": [1.5, -0.5]}, ValueError, "weights_init"),
        ({"precisions_init": [1.0, 0.0]}, ValueError, "precisions_init"),
    ],
)
def test_parameters_that_cannot_be(
    options: Any, error: Any, match: Any
) -> None:
    with pytest.raises(error, match=match):
        GaussianMixture(**{"n_components": 2, **options}).fit(blobs())


@pytest.mark.skipif(_core.cuda_available(), reason="there is a GPU")
def test_a_backend_that_is_not_there() -> None:
    with pytest.raises(ValueError, match='^backend = "cuda": '):
        GaussianMixture(2, backend="cuda").fit(blobs())


def test_samples_are_counted() -> None:
    fitted = GaussianMixture(2).fit(blobs())
    with pytest.raises(TypeError, match="^n_samples = 'a', expected an int"):
        fitted.sample("a")  # type: ignore[arg-type]


def test_rows_that_cannot_be() -> None:
    X = blobs()
    X[5, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        GaussianMixture(2).fit(X)
    with pytest.raises(NotFittedError):
        GaussianMixture(2).predict(blobs())
    with pytest.raises(ValueError, match="n_components = 9"):
        GaussianMixture(9).fit(blobs()[:5])
    m = GaussianMixture(2).fit(blobs())
    with pytest.raises(ValueError, match="features"):
        m.predict(blobs(d=3))
    with pytest.raises(ValueError, match="sample_weight"):
        m.fit(blobs(), sample_weight=-np.ones(3000))
    with pytest.raises(ValueError, match="n_samples"):
        m.sample(0)


def test_masks_are_refused() -> None:
    X = np.ma.masked_greater(blobs(), 3)
    m = GaussianMixture(2, random_state=0).fit(blobs())
    for call in (m.predict, m.fit, m.score):
        with pytest.raises(ValueError, match="^X: .* values are masked"):
            call(X)
    with pytest.raises(ValueError, match="^sample_weight: .* are masked"):
        m.fit(blobs(), sample_weight=np.ma.masked_equal(np.arange(3000), 7))
    with pytest.raises(ValueError, match="^X: .* values are masked"):
        m.fit(list(X))
    some = GaussianMixture(2, means_init=X[:2])
    with pytest.raises(ValueError, match="^means_init: .* are masked"):
        some.fit(blobs())
    same = GaussianMixture(2, random_state=0).fit(np.ma.array(blobs()))
    np.testing.assert_array_equal(same.means_, m.means_)


def test_wrong_numbers_are_named(base: Floats) -> None:
    with pytest.raises(TypeError, match="n_components = 2.5.* an integer"):
        GaussianMixture(2.5).fit(base)  # type: ignore[arg-type]
    for n in (500, 50000):  # merged, and too many for it
        X = blobs(n=n)
        for huge, said in ((1e39, r"1e\+39"), (-1e200, r"-1e\+200")):
            X[123, 2] = huge
            match = f"^X: row 123, dimension 2 is {said}, expected"
            with pytest.raises(ValueError, match=match):
                GaussianMixture(2).fit(X)


@pytest.mark.parametrize("kind", ["spherical", "diag", "tied", "full"])
@pytest.mark.parametrize("value", [1e-300, 1e300])
def test_starts_out_of_range_are_named(kind: str, value: float) -> None:
    X = blobs(n=300)
    precisions = {
        "spherical": np.full(2, value),
        "diag": np.full((2, 7), value),
        "tied": value * np.eye(7),
        "full": value * np.stack([np.eye(7)] * 2),
    }[kind]
    with pytest.raises(ValueError, match="^precisions_init: expected"):
        GaussianMixture(
            2, covariance_type=kind, precisions_init=precisions
        ).fit(X)
    if value > 1:
        means = np.zeros((2, 7))
        means[1, 3] = -value
        with pytest.raises(ValueError, match="^means_init: 1e.300 in size"):
            GaussianMixture(2, covariance_type=kind, means_init=means).fit(X)


def test_out_is_written_or_refused() -> None:
    X = blobs()[:50]
    m = GaussianMixture(4, random_state=0).fit(X)
    fixed = np.empty((50, 4))
    fixed.flags.writeable = False
    for out, given in (
        (np.empty((3, 4)), r"shape \(3, 4\).*"),
        (np.empty((50, 4), np.float32), ".*dtype float32"),
        (np.empty((50, 4), order="F"), "strides.*"),
        (np.empty((50, 8))[:, ::2], "strides.*"),
        (np.empty((50, 4))[::-1], "strides.*"),
        (fixed, "read-only"),
        ([[0.0]], "a list"),
    ):
        with pytest.raises(ValueError, match=f"^out: {given}, expected a wri"):
            m.predict_proba(X, out=cast(Any, out))


def test_bindings_write_to_what_they_are_given() -> None:
    """An output that would have to be converted is refused."""
    X = np.zeros((3, 2), np.float32)
    one = np.ones(1, np.float32)
    evaluate: Any = _core.evaluate
    model = ("spherical", X[:1], one, 0 * one, X[0], 1.0)
    for name, out in (
        ("labels", np.empty((3, 2), np.int64)[:, ::2]),
        ("log_prob", np.empty(6, np.float32)[::2]),
        ("posterior", np.empty((3, 2))[:, ::2]),
    ):
        evaluate(X, *model, **{name: out.copy()})
        with pytest.raises(TypeError):
            evaluate(X, *model, **{name: out})


@pytest.mark.parametrize("kind", ["spherical", "diag", "full"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("far", [1e20, 1e30, 1e38])
def test_rows_too_far_for_floats_are_named(
    kind: str, dtype: Any, far: float
) -> None:
    X = blobs(n=300).astype(dtype)
    m = GaussianMixture(2, covariance_type=kind, random_state=0).fit(X)
    X[203, 1] = far
    for call in (m.predict, m.predict_proba, m.score_samples, m.score, m.bic):
        with pytest.raises(ValueError, match="^x: row 203 has the log-likel"):
            call(X)
    X[203, 1] = 1e10
    assert np.isfinite(m.score_samples(X)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_scikit_learn_does_not_look_at(
    dtype: Any, value: float
) -> None:
    X = blobs(n=300).astype(dtype)
    X[203, 1] = value
    with (
        sklearn.config_context(assume_finite=True),
        pytest.raises(ValueError, match="row 203"),
    ):
        GaussianMixture(2, random_state=0).fit(X)


@pytest.mark.parametrize("merged", [True, False])
@pytest.mark.parametrize("kind", ["diag", "full"])
def test_the_scale_of_weights_does_not_matter(kind: str, merged: bool) -> None:
    X = blobs(n=500 if merged else 40000)
    w = np.random.default_rng(1).uniform(0.5, 2, size=len(X))
    w /= w.mean()

    def fitted(weights: Any) -> Any:
        m = GaussianMixture(3, covariance_type=kind, random_state=0)
        return m.fit(X, sample_weight=weights)

    a = fitted(w)
    np.testing.assert_array_equal(fitted(w * 2.0**-60).means_, a.means_)
    for scale in (1e-18, 1e-60, 1e18):
        b = fitted(w * scale)
        np.testing.assert_allclose(b.means_, a.means_, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(b.weights_, a.weights_, rtol=1e-4)
    with pytest.raises(ValueError, match="sample_weight: .* finite sum"):
        fitted(w * 1e307)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"n_components": 5}, "^n_components = 5, expected 7, as fitted"),
        (
            {"covariance_type": "tied"},
            "^covariance_type = 'tied', expect",
        ),
        ({}, "X has 3 features.* expecting 7"),
    ],
)
def test_warm_starts_go_on_from_what_was_fitted(
    changed: dict[str, Any], match: str
) -> None:
    X = blobs()
    m = GaussianMixture(7, covariance_type="diag", warm_start=True).fit(X)
    before = {name: np.copy(value) for name, value in vars(m).items()}
    m.set_params(**changed)
    with pytest.raises(ValueError, match=match):
        m.fit(X if changed else X[:, :3])
    m.set_params(n_components=7, covariance_type="diag")
    for name, value in vars(m).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)
    assert m.fit(X).predict(X).shape == (3000,)


@pytest.mark.parametrize("kind", ["spherical", "diag", "full", "tied"])
def test_a_kind_that_is_set_waits_for_the_next_fit(kind: str) -> None:
    X = blobs(n=300, d=4)

    def said(m: GaussianMixture) -> list[Any]:
        return [m.score_samples(X), m.predict(X), m.bic(X), *m.sample(5)]

    m = GaussianMixture(3, covariance_type=kind, random_state=0).fit(X)
    before = said(m)
    for other in ("spherical", "diag", "tied_spherical", "full", "tied"):
        m.set_params(covariance_type=other)
        for now, then in zip(said(m), before, strict=True):
            np.testing.assert_array_equal(now, then)
    assert m.fit(X).covariances_.shape == (4, 4)


def test_a_fit_that_fails_leaves_what_was_fitted() -> None:
    X = blobs(n=300)
    m = GaussianMixture(2, covariance_type="full", reg_covar=0).fit(X)
    before = {k: v for k, v in vars(m).items() if k.endswith("_")}
    proba = m.predict_proba(X)
    doubled = np.hstack([X, X[:, :1]])  # singular
    with pytest.raises(ValueError, match="positive definite"):
        m.fit(doubled)
    after = {k: v for k, v in vars(m).items() if k.endswith("_")}
    assert after.keys() == before.keys()
    assert all(after[k] is before[k] for k in before)
    np.testing.assert_array_equal(m.predict_proba(X), proba)
    fresh = GaussianMixture(2, covariance_type="full", reg_covar=0)
    with pytest.raises(ValueError):
        fresh.fit(doubled)
    assert not [k for k in vars(fresh) if k.endswith("_")]
    for bad in (np.inf, 1e300):
        with pytest.raises(ValueError, match="^reg_covar = "):
            GaussianMixture(2, reg_covar=bad).fit(X)


@pytest.mark.parametrize("name", ["weights_init", "means_init"])
@pytest.mark.parametrize("value", ["abc", [[1], [1, 2]]])
def test_starts_that_are_no_arrays_are_named(name: str, value: Any) -> None:
    model = GaussianMixture(2, **{name: value})
    with pytest.raises(ValueError, match=f"^{name}: .* an array of numbers"):
        model.fit(np.eye(3))
