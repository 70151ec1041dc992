"""What `GaussianMixture.fit` is given, checked."""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import _check_sample_weight

from ._arrays import as_array, choice, count, flag, has_mask
from ._covariances import covariance_kind

BACKENDS = ("auto", "cpu", "cuda")
#: Rows of data up to this many numbers are sorted and merged before fitting,
#: so that a weight of 2 is the same as a row that comes twice.
MERGE_UP_TO = 1 << 18
#: The size of values of which differences are float32.
MOST = 1e37


def check_range(X: NDArray[Any]) -> None:
    """Throws naming the first value that is too large or no number, of
    float64 and of rows that are merged: of others C++ does."""
    if X.dtype == np.float64:
        most = MOST
    elif X.dtype.kind == "f" and X.size <= MERGE_UP_TO:
        most = float(np.finfo(X.dtype).max)
    else:
        return
    if X.min() >= -most and X.max() <= most:
        return
    row, column = np.argwhere(~(np.abs(X) <= most))[0]
    raise ValueError(
        f"X: row {row}, dimension {column} is {X[row, column]:g}, expected at "
        f"most {most:g} in size"
    )


def merged(
    X: NDArray[Any], weights: NDArray[np.float32] | None
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Distinct rows and what they weigh."""
    rows, place, counts = np.unique(
        X, axis=0, return_inverse=True, return_counts=True
    )
    if weights is not None:
        counts = np.bincount(
            place.ravel(), weights.astype(np.float64), len(rows)
        )
        rows, counts = rows[counts > 0], counts[counts > 0]
    return np.ascontiguousarray(rows), counts.astype(np.float32)


def relative_weights(
    sample_weight: Any, X: NDArray[Any]
) -> NDArray[np.float32]:
    """With a mean of about 1, so that their scale does not matter: divided by
    a power of 2, so that a weight of 2 stays twice one of 1 to the bit."""
    if has_mask(sample_weight):
        sample_weight = as_array(sample_weight, "sample_weight")
    weights = _check_sample_weight(sample_weight, X, dtype=np.float64)
    with np.errstate(over="ignore"):
        mean = weights.mean()
    if not (weights >= 0).all() or not 0 < mean < np.inf:
        raise ValueError(
            "sample_weight: expected values of at least 0, not all 0, of a "
            "finite sum"
        )
    return np.asarray(np.ldexp(weights, -round(np.log2(mean))), np.float32)


def start_values(value: Any, name: str) -> NDArray[np.float64] | None:
    """A copy of weights_init, means_init or precisions_init."""
    if value is None:
        return None
    if has_mask(value):
        value = as_array(value, name)
    try:
        return np.array(value, np.float64)
    except (TypeError, ValueError) as error:
        raise type(error)(
            f"{name}: {error}, expected an array of numbers"
        ) from None


@contextmanager
def fitted_or_as_before(model: Any) -> Iterator[None]:
    """What fitting has set is taken back if it fails."""

    def is_fitted(name: str) -> bool:
        return name.endswith("_") or name == "_fitted_type"

    before = {k: v for k, v in vars(model).items() if is_fitted(k)}
    try:
        yield
    except BaseException:
        for name in [name for name in vars(model) if is_fitted(name)]:
            delattr(model, name)
        vars(model).update(before)
        raise


def check_parameters(model: Any) -> None:
    """Of a GaussianMixture: throws naming the one that cannot be."""
    for name, least in (
        ("n_components", 1),
        ("max_iter", 0),
        ("n_init", 1),
        ("verbose_interval", 1),
        ("tol", 0.0),
        ("reg_covar", 0.0),
    ):
        value = getattr(model, name)
        if not isinstance(value, (int, float, np.number)) or isinstance(
            value, bool
        ):
            raise TypeError(f"{name} = {value!r}, expected a number")
        if isinstance(least, int) and not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} = {value!r}, expected an integer")
        if not value >= least:
            raise ValueError(f"{name} = {value}, expected >= {least}")
    if not model.reg_covar <= float(np.finfo(np.float32).max):
        raise ValueError(
            f"reg_covar = {model.reg_covar}, expected a finite float32"
        )
    flag(model.warm_start, "warm_start")
    if not isinstance(model.verbose, (bool, np.bool_)):
        count(model.verbose, "verbose", 0)
    covariance_kind(model.covariance_type)
    for name, choices in (
        ("init_params", ("kmeans", "k-means++", "random_from_data")),
        ("backend", BACKENDS),
    ):
        choice(getattr(model, name), name, choices)


def goes_on(model: Any) -> bool:
    """Whether `fit` of a GaussianMixture starts from where the last one
    ended; throws where it cannot."""
    if not model.warm_start or not hasattr(model, "converged_"):
        return False
    for name, fitted in (
        ("n_components", len(model.means_)),
        # none of one that an earlier version pickled
        (
            "covariance_type",
            getattr(model, "_fitted_type", model.covariance_type),
        ),
    ):
        value = getattr(model, name)
        if value != fitted:
            raise ValueError(
                f"{name} = {value!r}, expected {fitted!r}, as fitted, which "
                "warm_start goes on from"
            )
    return True
