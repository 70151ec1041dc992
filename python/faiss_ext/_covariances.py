"""What differs between the kinds of covariance matrices."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from ._arrays import choice

Doubles = NDArray[np.float64]
Floats = NDArray[np.float32]


class CovarianceKind(Protocol):
    """Parameters are in the units of the statistics; shapes as in
    scikit-learn."""

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        """Of the covariances of k components."""

    def n_parameters(self, k: int, d: int) -> int:
        """How many of the covariances are free."""

    def unit(self, k: int, d: int) -> Floats:
        """As `for_core`: all covariances are the identity."""

    def for_core(self, covariances: Doubles, scale: float) -> Floats:
        """What the E-step takes, of data that are `scale` times as large:
        variances, or Cholesky factors of precisions."""

    def m_step(
        self, stats: Any, reg_covar: float
    ) -> tuple[Doubles, Doubles, Doubles]:
        """Weights, means and covariances from an E-step's sums."""

    def scaled(self, covariances: Doubles, scale: float) -> Doubles:
        """Of data that are `scale` times as large."""

    def precisions_cholesky(self, covariances: Doubles) -> Doubles:
        """Raises ValueError where there is none."""

    def precisions(self, cholesky: Doubles) -> Doubles:
        """From `precisions_cholesky`."""

    def covariances_of(self, precisions: Doubles) -> Doubles:
        """Raises ValueError for what can be no precisions."""

    def check_start(self, covariances: Doubles, scale: float) -> None:
        """Raises ValueError where `for_core` of precisions_init's is 0 or
        infinite."""

    def mean_variance(self, covariances: Doubles, k: int) -> Doubles:
        """Over dimensions, shape (k,)."""

    def drawn(self, covariances: Doubles, y: Any, noise: Doubles) -> Doubles:
        """Standard normal noise as that of components y."""


#: Less, of the mean square, is what float32 makes of a variance of 0.
_LEAST = 1e-13
_OUT_OF_RANGE = (
    "precisions_init: expected precisions whose inverses fit in float32 where "
    "the data's variance is 1"
)
_NEEDED = "fewer n_components, another start or more reg_covar is needed"


def _spherical(stats: Any, n_k: Doubles, means: Doubles) -> Doubles:
    """Each component's variance. What rounding leaves goes by its own square:
    one row far away makes the data's."""
    square = stats.sum_x2 / n_k
    scatter = square - np.square(means).sum(axis=1)
    kept = np.where(scatter > _LEAST * square, scatter, 0.0)
    return np.asarray(kept / means.shape[1])


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

    def n_parameters(self, k: int, d: int) -> int:
        return int(np.prod(self.shape(k, d)))

    def unit(self, k: int, d: int) -> Floats:
        return np.atleast_1d(np.ones(self.shape(k, d), np.float32))

    def for_core(self, covariances: Doubles, scale: float) -> Floats:
        return np.atleast_1d(covariances * scale**2).astype(np.float32)

    def scaled(self, covariances: Doubles, scale: float) -> Doubles:
        return np.asarray(covariances * scale**2)

    def precisions_cholesky(self, covariances: Doubles) -> Doubles:
        if not (np.asarray(covariances) > 0).all():
            raise ValueError(f"a component's variance is 0: {_NEEDED}")
        return np.asarray(1 / np.sqrt(covariances))

    def precisions(self, cholesky: Doubles) -> Doubles:
        return np.square(cholesky)

    def covariances_of(self, precisions: Doubles) -> Doubles:
        if not (precisions > 0).all():
            raise ValueError("precisions_init: expected positive values")
        return np.asarray(1 / precisions)

    def check_start(self, covariances: Doubles, scale: float) -> None:
        with np.errstate(over="ignore", under="ignore"):
            variances = self.for_core(covariances, scale)
        if not ((variances > 0) & (variances < np.inf)).all():
            raise ValueError(_OUT_OF_RANGE)

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
        return _spherical(stats, n_k, means)

    def mean_variance(self, covariances: Doubles, k: int) -> Doubles:
        return covariances


class Diagonal(_ByDimension):
    """diag(sigma_kj^2)."""

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (k, d)

    def variances(self, stats: Any, n_k: Doubles, means: Doubles) -> Doubles:
        square = stats.sum_x2 / n_k[:, np.newaxis]
        scatter = square - np.square(means)
        # What doubles leave of a variance of 0, in each dimension's own unit.
        return np.where(scatter > 1e-12 * square, scatter, 0.0)

    def mean_variance(self, covariances: Doubles, k: int) -> Doubles:
        return np.asarray(covariances.mean(axis=1))


class TiedSpherical(_ByDimension):
    """sigma^2 I, the same for all components."""

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return ()

    def variances(self, stats: Any, n_k: Doubles, means: Doubles) -> Doubles:
        return np.asarray(n_k @ _spherical(stats, n_k, means) / n_k.sum())

    def mean_variance(self, covariances: Doubles, k: int) -> Doubles:
        return np.full(k, covariances)


def _unpacked(packed: Doubles, d: int) -> Doubles:
    """Symmetric matrices of their lower triangles row by row."""
    out = np.empty((*packed.shape[:-1], d, d))
    i, j = np.tril_indices(d)
    out[..., i, j] = packed
    out[..., j, i] = packed
    return out


def _least_diagonal(covariances: Doubles, reg_covar: float) -> Doubles:
    """Rounding leaves no variance below 0, and `reg_covar` is added."""
    j = np.arange(covariances.shape[-1])
    covariances[..., j, j] = np.maximum(covariances[..., j, j], 0) + reg_covar
    return covariances


def _factors(matrices: Doubles, failure: str) -> Doubles:
    """L with L L^T = matrix, lower triangular."""
    try:
        return np.asarray(np.linalg.cholesky(matrices))
    except np.linalg.LinAlgError:
        raise ValueError(failure) from None


def _lower_inverses(factors: Doubles) -> Doubles:
    """Of lower triangular matrices. Small ones all at once: a call of LAPACK
    for each takes longer than an iteration on a few hundred rows."""
    d = factors.shape[-1]
    if d > 64:
        return np.asarray(
            [solve_triangular(f, np.eye(d), lower=True) for f in factors]
        )
    out = np.zeros_like(factors)
    for i in range(d):
        row = -np.einsum("kj,kjl->kl", factors[:, i, :i], out[:, :i, :])
        row[:, i] += 1
        out[:, i, :] = row / factors[:, i, i, np.newaxis]
    return out


class _Matrices:
    """Covariance matrices that need not be diagonal."""

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        raise NotImplementedError

    def n_parameters(self, k: int, d: int) -> int:
        matrices = int(np.prod(self.shape(k, d))) // d**2
        return matrices * d * (d + 1) // 2

    def unit(self, k: int, d: int) -> Floats:
        shape = self.shape(k, d)
        return np.broadcast_to(np.eye(d, dtype=np.float32), shape).copy()

    def for_core(self, covariances: Doubles, scale: float) -> Floats:
        factors = self.precisions_cholesky(covariances) / scale
        return factors.astype(np.float32)

    def scaled(self, covariances: Doubles, scale: float) -> Doubles:
        return np.asarray(covariances * scale**2)

    def precisions_cholesky(self, covariances: Doubles) -> Doubles:
        factors = _factors(
            covariances,
            f"a covariance matrix is not positive definite: {_NEEDED}",
        )
        d = covariances.shape[-1]
        inverses = _lower_inverses(factors.reshape(-1, d, d))
        return np.swapaxes(inverses, -1, -2).reshape(covariances.shape)

    def precisions(self, cholesky: Doubles) -> Doubles:
        return np.asarray(cholesky @ np.swapaxes(cholesky, -1, -2))

    def covariances_of(self, precisions: Doubles) -> Doubles:
        failure = (
            "precisions_init: expected symmetric, positive definite matrices"
        )
        if not np.allclose(precisions, np.swapaxes(precisions, -1, -2)):
            raise ValueError(failure)
        _factors(precisions, failure)
        return np.asarray(np.linalg.inv(precisions))

    def check_start(self, covariances: Doubles, scale: float) -> None:
        with np.errstate(over="ignore", under="ignore"):
            factors = self.for_core(covariances, scale)
        diagonals = np.diagonal(factors, axis1=-2, axis2=-1)
        if not (np.isfinite(factors).all() and (diagonals > 0).all()):
            raise ValueError(_OUT_OF_RANGE)


class Full(_Matrices):
    """Sigma_k."""

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (k, d, d)

    def m_step(
        self, stats: Any, reg_covar: float
    ) -> tuple[Doubles, Doubles, Doubles]:
        n_k = stats.n_k + 10 * np.finfo(np.float64).eps
        means = stats.sum_x / n_k[:, np.newaxis]
        covariances = _unpacked(stats.sum_x2, means.shape[1])
        covariances /= n_k[:, np.newaxis, np.newaxis]
        covariances -= means[:, :, np.newaxis] * means[:, np.newaxis, :]
        return (
            n_k / n_k.sum(),
            means,
            _least_diagonal(covariances, reg_covar),
        )

    def mean_variance(self, covariances: Doubles, k: int) -> Doubles:
        d = covariances.shape[-1]
        return np.asarray(np.trace(covariances, axis1=1, axis2=2) / d)

    def drawn(self, covariances: Doubles, y: Any, noise: Doubles) -> Doubles:
        factors = np.linalg.cholesky(covariances)
        out = np.empty_like(noise)
        for c in np.unique(y):
            out[y == c] = noise[y == c] @ factors[c].T
        return out


class Tied(_Matrices):
    """Sigma, the same for all components."""

    def shape(self, k: int, d: int) -> tuple[int, ...]:
        return (d, d)

    def m_step(
        self, stats: Any, reg_covar: float
    ) -> tuple[Doubles, Doubles, Doubles]:
        n_k = stats.n_k + 10 * np.finfo(np.float64).eps
        means = stats.sum_x / n_k[:, np.newaxis]
        k, d = means.shape
        # The sums of each component's |y|^2 come first.
        covariances = _unpacked(stats.sum_x2[k:], d)
        covariances -= (n_k * means.T) @ means
        covariances /= n_k.sum()
        return (
            n_k / n_k.sum(),
            means,
            _least_diagonal(covariances, reg_covar),
        )

    def mean_variance(self, covariances: Doubles, k: int) -> Doubles:
        return np.full(k, np.trace(covariances) / len(covariances))

    def drawn(self, covariances: Doubles, y: Any, noise: Doubles) -> Doubles:
        return np.asarray(noise @ np.linalg.cholesky(covariances).T)


_KINDS: dict[str, CovarianceKind] = {
    "spherical": Spherical(),
    "diag": Diagonal(),
    "tied_spherical": TiedSpherical(),
    "full": Full(),
    "tied": Tied(),
}


def covariance_kind(name: str) -> CovarianceKind:
    return _KINDS[choice(name, "covariance_type", _KINDS)]
