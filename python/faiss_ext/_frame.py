"""The units that E-steps are computed in."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from . import _core

Doubles = NDArray[np.float64]


class Frame(NamedTuple):
    """y = (x - offset - center) * scale: the units of the E-step."""

    offset: Doubles | None
    center: NDArray[np.float32]
    scale: float

    @property
    def origin(self) -> Doubles:
        center = self.center.astype(np.float64)
        return center if self.offset is None else center + self.offset


class EStep(Protocol):
    """What computes E-steps: _core.EStepEngine, or many of them."""

    @property
    def backend(self) -> str: ...

    def accumulate(
        self,
        covariance_type: str,
        means: NDArray[np.float32],
        variances: NDArray[np.float32],
        log_weights: NDArray[np.float32],
        hard: bool,
    ) -> _core.SufficientStats: ...


def needs_offset(X: NDArray[Any]) -> bool:
    """float32 cannot hold float64's and large integers' small differences."""
    return X.dtype in (np.float64, np.int64, np.uint64, np.int32, np.uint32)


def offset_of(
    X: NDArray[Any], weights: NDArray[np.float32] | None = None
) -> Doubles | None:
    """The mean of some rows that have weight."""
    if not needs_offset(X):
        return None
    some = X[:1000]
    if weights is not None:
        some = X[np.flatnonzero(weights)[:1000]]
    return np.asarray(some.mean(axis=0, dtype=np.float64))
