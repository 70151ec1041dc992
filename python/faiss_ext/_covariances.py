"""What differs between the kinds of covariance matrices."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


class CovarianceKind(Protocol):
    """Parameters are in the units of the statistics; shapes as in
    scikit-learn."""

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        """Of the covariances of k components."""

    def variances(self, stats: Any, n_k: Doubles, means: Doubles) -> Doubles:
        """That maximise the expected log-likelihood."""

    def m_step(
        self, stats: Any, reg_covar: float
    ) -> tuple[Doubles, Doubles, Doubles]:
        """Weights, means and covariances from an E-step's sums."""

    def scaled(self, covariances: Doubles, scale: float) -> Doubles:
        """Of data that are `scale` times as large."""

    def inverse(self, covariances: Doubles) -> Doubles:
        """Precisions, or from these the covariances."""

    def cholesky_of_inverse(self, covariances: Doubles) -> Doubles:
        """Raises ValueError where there is none."""

    def mean_variance(self, covariances: Doubles, k: int) -> Doubles:
        """Over dimensions, shape (k,)."""

    def drawn(self, covariances: Doubles, y: Any, noise: Doubles) -> Doubles:
        """Standard normal noise as that of components y."""


#: Less is what float32 makes of a variance of 0, where the data's is 1.
_LEAST = 1e-13


def _variance(values: Any) -> Doubles:
    return np.where(values > _LEAST, values, 0.0)


class _ByDimension:
    """Covariance matrices that are diagonal."""

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        raise NotImplementedError

    def variances(self, stats: Any, n_k: Doubles, means: Doubles) -> Doubles:
        raise NotImplementedError

    def m_step(
        self, stats: Any, reg_covar: float
    ) -> tuple[Doubles, Doubles, Doubles]:
        # As in scikit-learn: no component divides by 0.
        n_k = stats.n_k + 10 * np.finfo(np.float64).eps
        means = stats.sum_x / n_k[:, np.newaxis]
        variances = self.variances(stats, n_k, means) + reg_covar
        return n_k / n_k.sum(), means, variances

    def scaled(self, covariances: Doubles, scale: float) -> Doubles:
        return np.asarray(covariances * scale**2)

    def inverse(self, covariances: Doubles) -> Doubles:
        return np.asarray(1 / covariances)

    def cholesky_of_inverse(self, covariances: Doubles) -> Doubles:
        if not (np.asarray(covariances) > 0).all():
            raise ValueError(
                "a component's variance is 0: fewer n_components, another "
                "start or more reg_covar is needed"
            )
        return np.asarray(1 / np.sqrt(covariances))

    def drawn(self, covariances: Doubles, y: Any, noise: Doubles) -> Doubles:
        deviation = np.sqrt(covariances)
        if deviation.ndim == 1:
            deviation = deviation[y, np.newaxis]
        elif deviation.ndim == 2:
            deviation = deviation[y]
        return np.asarray(noise * deviation)


class Spherical(_ByDimension):
    """sigma_k^2 I."""

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (k,)

    def variances(self, stats: Any, n_k: Doubles, means: Doubles) -> Doubles:
        scatter = stats.sum_x2 / n_k - np.square(means).sum(axis=1)
        return _variance(scatter / means.shape[1])

    def mean_variance(self, covariances: Doubles, k: int) -> Doubles:
        return covariances


class Diagonal(_ByDimension):
    """diag(sigma_kj^2)."""

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (k, d)

    def variances(self, stats: Any, n_k: Doubles, means: Doubles) -> Doubles:
        scatter = stats.sum_x2 / n_k[:, np.newaxis] - np.square(means)
        return _variance(scatter)

    def mean_variance(self, covariances: Doubles, k: int) -> Doubles:
        return np.asarray(covariances.mean(axis=1))


class TiedSpherical(_ByDimension):
    """sigma^2 I, the same for all components."""

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return ()

    def variances(self, stats: Any, n_k: Doubles, means: Doubles) -> Doubles:
        scatter = stats.sum_x2.sum() - n_k @ np.square(means).sum(axis=1)
        return _variance(scatter / (n_k.sum() * means.shape[1]))

    def mean_variance(self, covariances: Doubles, k: int) -> Doubles:
        return np.full(k, covariances)


_KINDS: dict[str, CovarianceKind] = {
    "spherical": Spherical(),
    "diag": Diagonal(),
    "tied_spherical": TiedSpherical(),
}


def covariance_kind(name: str) -> CovarianceKind:
    if name not in _KINDS:
        expected = ", ".join(f'"{kind}"' for kind in _KINDS)
        raise ValueError(
            f"covariance_type = {name!r}, expected one of {expected}"
        )
    return _KINDS[name]
