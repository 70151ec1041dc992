"""The mixture as a scikit-learn estimator."""

from __future__ import annotations

import numbers
import warnings
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from . import _core
from ._covariances import covariance_kind
from ._progress import Bar

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # scikit-learn before 1.6

    def validate_data(estimator: Any, X: Any, **options: Any) -> Any:
        return estimator._validate_data(X, **options)


Doubles = NDArray[np.float64]

#: Rows of data up to this many numbers are sorted and merged before fitting,
#: so that a weight of 2 is the same as a row that comes twice.
_MERGE_UP_TO = 1 << 18


class _Frame(NamedTuple):
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


def _needs_offset(X: NDArray[Any]) -> bool:
    """float32 cannot hold float64's and large integers' small differences."""
    return X.dtype in (np.float64, np.int64, np.uint64, np.int32, np.uint32)


def _offset_of(X: NDArray[Any]) -> Doubles | None:
    if not _needs_offset(X):
        return None
    return np.asarray(X[: min(len(X), 1000)].mean(axis=0, dtype=np.float64))


def _merged(
    X: NDArray[Any], weights: NDArray[np.float32] | None
) -> tuple[NDArray[Any], NDArray[np.float32]]:
    rows, place, counts = np.unique(
        X, axis=0, return_inverse=True, return_counts=True
    )
    if weights is not None:
        counts = np.bincount(
            place.ravel(), weights.astype(np.float64), len(rows)
        )
        rows, counts = rows[counts > 0], counts[counts > 0]
    return np.ascontiguousarray(rows), counts.astype(np.float32)


class GaussianMixture(DensityMixin, BaseEstimator):
    """A Gaussian mixture, with scikit-learn's names and conventions.

    Fits by expectation maximisation on a GPU or on all cores, on data of any
    size: rows are read in blocks from arrays of any real dtype, np.memmap
    among them, and the n x n_components array of responsibilities is never in
    memory (but in `predict_proba`, which returns it).

    Parameters
    ----------
    n_components : int, default=1
    covariance_type : {"spherical", "diag", "tied_spherical", "full", "tied"}
        One variance a component; one a component and dimension; one for all;
        one matrix a component; one matrix for all. Matrices are fitted on the
        CPU.
    tol : float, default=1e-3
        EM stops when the mean log-likelihood gains less.
    reg_covar : float, default=1e-6
        Added to all variances.
    max_iter : int, default=100
    n_init : int, default=1
        Starts, of which the best is kept.
    init_params : {"kmeans", "k-means++", "random_from_data"}
        Where means start: after k-means; at rows far from each other; at
        random rows. Weights and variances are those of the rows nearest to
        each mean.
    weights_init : array of shape (n_components,), optional
    means_init : array of shape (n_components, n_features), optional
    precisions_init : array, optional
        Inverse variances or matrices, shaped as `covariances_`.
    random_state : int, RandomState or None
    warm_start : bool, default=False
        `fit` starts from where the last one ended.
    verbose : int, default=0
        Above 0: prints the lower bound every `verbose_interval` iterations,
        above a bar of tqdm's where it is installed.
    verbose_interval : int, default=10
    backend : {"auto", "cpu", "cuda"}
        Where E-steps are computed; "auto" takes a GPU if there is one.

    Attributes
    ----------
    weights_ : ndarray of shape (n_components,)
    means_ : ndarray of shape (n_components, n_features)
    covariances_, precisions_, precisions_cholesky_ : ndarray
        By covariance type, of shape (n_components,), (n_components,
        n_features), (), (n_components, n_features, n_features) or
        (n_features, n_features).
    converged_ : bool
    n_iter_ : int
    lower_bound_ : float
        Mean log-likelihood of the last E-step.
    lower_bounds_ : list of float
        Of each iteration of the best start.
    n_features_in_ : int
    backend_ : str
        What computed the E-steps.
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "spherical",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        init_params: str = "kmeans",
        weights_init: Any = None,
        means_init: Any = None,
        precisions_init: Any = None,
        random_state: Any = None,
        warm_start: bool = False,
        verbose: int = 0,
        verbose_interval: int = 10,
        backend: str = "auto",
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.init_params = init_params
        self.weights_init = weights_init
        self.means_init = means_init
        self.precisions_init = precisions_init
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.verbose_interval = verbose_interval
        self.backend = backend

    # Fitting

    def fit(
        self, X: Any, y: Any = None, sample_weight: Any = None
    ) -> GaussianMixture:
        """Fits the mixture.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
        y : ignored
        sample_weight : array of shape (n_samples,), optional
            Non-negative.

        Returns
        -------
        GaussianMixture
            Itself.

        Raises
        ------
        ValueError, TypeError
            For data or parameters that cannot be, naming them.
        """
        self._check_parameters()
        X = self._validate(X, reset=True)
        weights = None
        if sample_weight is not None:
            weights = _check_sample_weight(sample_weight, X, dtype=np.float32)
            if not (weights >= 0).all() or not weights.sum() > 0:
                raise ValueError(
                    "sample_weight: expected values of at least 0, not all 0"
                )
        if len(X) < self.n_components:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = "
                f"{self.n_components}, n_samples = {len(X)}"
            )
        if X.size <= _MERGE_UP_TO:
            X, weights = _merged(X, weights)
        offset = _offset_of(X)
        center, scale, _ = _core.frame_of(X, weights, offset)
        frame = _Frame(offset, center, scale)
        backend = self.backend
        if backend == "auto" and self.covariance_type in ("full", "tied"):
            backend = "cpu"
        engine = _core.EStepEngine(X, weights, center, scale, backend, offset)
        return self._fit_by(engine, frame, X, weights)

    def _fit_by(
        self,
        engine: EStep,
        frame: _Frame,
        X: NDArray[Any],
        weights: NDArray[np.float32] | None,
    ) -> GaussianMixture:
        """Fits by E-steps of `engine`; means start among the rows X."""
        self.backend_ = engine.backend
        random = check_random_state(self.random_state)
        warm = self.warm_start and hasattr(self, "converged_")
        if not warm:
            best = None
            for start in range(self.n_init):
                if self.verbose:
                    print(f"Initialization {start}")
                self._set_start(X, weights, frame, engine, random)
                bounds, converged = self._iterate(engine, frame)
                bound = bounds[-1] if bounds else -np.inf
                if best is None or bound > best[0]:
                    best = bound, bounds, converged, self._parameters()
            assert best is not None
            _, bounds, converged, parameters = best
            self._set_parameters(*parameters)
        else:
            bounds, converged = self._iterate(engine, frame)
        self.converged_ = converged
        self.n_iter_ = len(bounds)
        self.lower_bounds_ = bounds
        self.lower_bound_ = bounds[-1] if bounds else -np.inf
        if not converged and self.max_iter > 0:
            warnings.warn(
                "EM did not converge: try more max_iter, another start, or a "
                "larger tol",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def fit_predict(
        self, X: Any, y: Any = None, sample_weight: Any = None
    ) -> NDArray[np.int64]:
        """Fits the mixture, and the component of each row.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
        y : ignored
        sample_weight : array of shape (n_samples,), optional

        Returns
        -------
        ndarray of int of shape (n_samples,)
        """
        return self.fit(X, y, sample_weight).predict(X)

    def _check_parameters(self) -> None:
        for name, least in (
            ("n_components", 1),
            ("max_iter", 0),
            ("n_init", 1),
            ("tol", 0.0),
            ("reg_covar", 0.0),
        ):
            value = getattr(self, name)
            if not isinstance(value, (int, float, np.number)) or isinstance(
                value, bool
            ):
                raise TypeError(f"{name} = {value!r}, expected a number")
            if isinstance(least, int) and not isinstance(
                value, numbers.Integral
            ):
                raise TypeError(f"{name} = {value!r}, expected an integer")
            if not value >= least:
                raise ValueError(f"{name} = {value}, expected >= {least}")
        covariance_kind(self.covariance_type)
        if self.init_params not in ("kmeans", "k-means++", "random_from_data"):
            raise ValueError(
                f'init_params = {self.init_params!r}, expected "kmeans", '
                '"k-means++" or "random_from_data"'
            )

    def _validate(self, X: Any, reset: bool) -> NDArray[Any]:
        X = validate_data(
            self,
            X,
            reset=reset,
            dtype="numeric",
            ensure_min_samples=2 if reset else 1,
        )
        if X.dtype.kind not in "fiu" or X.dtype.itemsize > 8:
            X = X.astype(np.float64)
        if not X.dtype.isnative or (
            X.dtype == np.float16 and not X.flags.c_contiguous
        ):
            X = np.ascontiguousarray(X, X.dtype.newbyteorder("="))
        return np.asarray(X)

    def _parameters(self) -> tuple[Doubles, Doubles, Doubles]:
        return self.weights_, self.means_, self.covariances_

    def _set_parameters(
        self, weights: Doubles, means: Doubles, covariances: Doubles
    ) -> None:
        self.weights_ = weights
        self.means_ = means
        self.covariances_ = covariances
        kind = covariance_kind(self.covariance_type)
        self.precisions_cholesky_ = kind.precisions_cholesky(covariances)
        self.precisions_ = kind.precisions(self.precisions_cholesky_)

    def _set_start(
        self,
        X: NDArray[Any],
        weights: NDArray[np.float32] | None,
        frame: _Frame,
        engine: EStep,
        random: np.random.RandomState,
    ) -> None:
        k, d = self.n_components, X.shape[1]
        kind = covariance_kind(self.covariance_type)
        given = {
            name: None if value is None else np.array(value, np.float64)
            for name, value in (
                ("weights_init", self.weights_init),
                ("means_init", self.means_init),
                ("precisions_init", self.precisions_init),
            )
        }
        for name, shape in (
            ("weights_init", (k,)),
            ("means_init", (k, d)),
            ("precisions_init", kind.shape(k, d)),
        ):
            value = given[name]
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"{name}: shape {value.shape}, expected {shape}"
                )
            if value is not None and not np.isfinite(value).all():
                raise ValueError(f"{name}: expected finite values")
        w, means, precisions = given.values()
        if w is not None and (
            not (w >= 0).all() or not np.isclose(w.sum(), 1)
        ):
            raise ValueError(
                "weights_init: expected values of at least 0 that sum to 1"
            )
        if precisions is not None:
            variances = kind.covariances_of(precisions)
        if w is None or means is None or precisions is None:
            seed = int(random.randint(np.iinfo(np.int32).max))
            start = means
            if start is None:
                start = self._start_means(X, weights, frame, seed)
            moved = kind.m_step(
                self._accumulate(engine, frame, start, hard=True),
                self.reg_covar * frame.scale**2,
            )
            by_rows = self._to_user(frame, *moved)
            w = by_rows[0] if w is None else w
            if means is None:
                means = by_rows[1] if self.init_params == "kmeans" else start
            if precisions is None:
                variances = by_rows[2]
        self._set_parameters(w, means, variances)

    def _start_means(
        self,
        X: NDArray[Any],
        weights: NDArray[np.float32] | None,
        frame: _Frame,
        seed: int,
    ) -> Doubles:
        k = self.n_components
        distinct = len(X) if weights is None else np.count_nonzero(weights)
        if distinct < k:  # fewer distinct rows than components
            rows = np.flatnonzero(
                np.ones(len(X)) if weights is None else weights
            )
            return np.asarray(X[np.resize(rows, k)], np.float64)
        fitted = _core.train(
            X,
            weights,
            k,
            init="random"
            if self.init_params == "random_from_data"
            else "k-means++",
            hard_iterations=10 if self.init_params == "kmeans" else 0,
            niter=0,
            seed=seed,
            backend=self.backend,
            offset=frame.offset,
        )
        means: Doubles = fitted["means"].astype(np.float64)
        return means if frame.offset is None else means + frame.offset

    def _accumulate(
        self,
        engine: EStep,
        frame: _Frame,
        means: Doubles,
        *,
        hard: bool = False,
    ) -> _core.SufficientStats:
        k, d = means.shape
        kind = covariance_kind(self.covariance_type)
        if hard:
            variances = kind.unit(k, d)
            log_weights = np.full(k, -np.log(k))
        else:
            variances = kind.for_core(self.covariances_, frame.scale)
            with np.errstate(divide="ignore"):
                log_weights = np.maximum(np.log(self.weights_), -80)
        return engine.accumulate(
            self.covariance_type,
            ((means - frame.origin) * frame.scale).astype(np.float32),
            variances,
            log_weights.astype(np.float32),
            hard,
        )

    def _to_user(
        self,
        frame: _Frame,
        weights: Doubles,
        means: Doubles,
        variances: Doubles,
    ) -> tuple[Doubles, Doubles, Doubles]:
        kind = covariance_kind(self.covariance_type)
        return (
            weights,
            means / frame.scale + frame.origin,
            kind.scaled(variances, 1 / frame.scale),
        )

    def _iterate(
        self, engine: EStep, frame: _Frame
    ) -> tuple[list[float], bool]:
        kind = covariance_kind(self.covariance_type)
        reg = self.reg_covar * frame.scale**2
        log_volume = self.means_.shape[1] * np.log(frame.scale)
        bounds: list[float] = []
        with Bar(bool(self.verbose), self.max_iter, "EM", "iterations") as bar:
            for iteration in range(1, self.max_iter + 1):
                stats = self._accumulate(engine, frame, self.means_)
                self._set_parameters(
                    *self._to_user(frame, *kind.m_step(stats, reg))
                )
                bound = stats.objective / stats.weight + float(log_volume)
                bounds.append(bound)
                bar.advance(note=f"lower bound {bound:.5f}")
                if iteration % self.verbose_interval == 0:
                    bar.say(
                        f"  Iteration {iteration}: lower bound {bound:.5f}"
                    )
                if len(bounds) > 1 and abs(bound - bounds[-2]) < self.tol:
                    return bounds, True
        return bounds, False

    # What the mixture says of rows

    def _evaluate(self, X: Any, **outputs: Any) -> None:
        check_is_fitted(self)
        X = self._validate(X, reset=False)
        kind = covariance_kind(self.covariance_type)
        k, d = self.means_.shape
        middle = self.weights_ @ self.means_
        spread = np.square(self.means_ - middle).mean(axis=1)
        variance = self.weights_ @ (
            spread + kind.mean_variance(self.covariances_, k)
        )
        scale = float(np.float32(1 / np.sqrt(variance)))
        offset = middle if _needs_offset(X) else None
        center = np.zeros(d) if _needs_offset(X) else middle
        frame = _Frame(offset, center.astype(np.float32), scale)
        with np.errstate(divide="ignore"):
            log_weights = np.maximum(np.log(self.weights_), -80)
        _core.evaluate(
            X,
            self.covariance_type,
            ((self.means_ - frame.origin) * scale).astype(np.float32),
            kind.for_core(self.covariances_, scale),
            log_weights.astype(np.float32),
            frame.center,
            scale,
            offset,
            **{name: make(len(X)) for name, make in outputs.items()},
        )

    def predict(self, X: Any) -> NDArray[np.int64]:
        """The most responsible component of each row.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)

        Returns
        -------
        ndarray of int of shape (n_samples,)
        """
        made: list[NDArray[Any]] = []

        def labels(n: int) -> NDArray[Any]:
            made.append(np.empty((n, 1), np.int64))
            return made[0]

        self._evaluate(X, labels=labels)
        return made[0][:, 0]

    def predict_proba(self, X: Any, out: Doubles | None = None) -> Doubles:
        """Responsibilities: the probability of each component for each row.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
        out : ndarray of float64 of that shape, optional
            Written instead of a new array; a np.memmap will do.

        Returns
        -------
        ndarray of shape (n_samples, n_components)
            Rows sum to 1.
        """
        made: list[Doubles] = []

        def posterior(n: int) -> Doubles:
            shape = (n, len(self.weights_))
            made.append(np.empty(shape) if out is None else out)
            if made[0].shape != shape or made[0].dtype != np.float64:
                raise ValueError(
                    f"out: shape {made[0].shape} and dtype {made[0].dtype}, "
                    f"expected {shape} and float64"
                )
            return np.asarray(made[0])

        self._evaluate(X, posterior=posterior)
        return made[0]

    def score_samples(self, X: Any) -> Doubles:
        """Log-likelihood of each row.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,)
            In nats.
        """
        made: list[NDArray[Any]] = []

        def log_prob(n: int) -> NDArray[Any]:
            made.append(np.empty(n, np.float32))
            return made[0]

        self._evaluate(X, log_prob=log_prob)
        return made[0].astype(np.float64)

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log-likelihood of the rows.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
        y : ignored

        Returns
        -------
        float
            In nats.
        """
        return float(self.score_samples(X).mean())

    def _n_parameters(self) -> int:
        k, d = self.means_.shape
        kind = covariance_kind(self.covariance_type)
        return int(k - 1 + k * d + kind.n_parameters(k, d))

    def bic(self, X: Any) -> float:
        """Bayesian information criterion.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)

        Returns
        -------
        float
            Lower is better.
        """
        log_likelihood = self.score_samples(X)
        return float(
            -2 * log_likelihood.sum()
            + self._n_parameters() * np.log(len(log_likelihood))
        )

    def aic(self, X: Any) -> float:
        """Akaike information criterion.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)

        Returns
        -------
        float
            Lower is better.
        """
        return float(
            -2 * self.score_samples(X).sum() + 2 * self._n_parameters()
        )

    def sample(self, n_samples: int = 1) -> tuple[Doubles, NDArray[np.int64]]:
        """Draws rows of the mixture.

        Parameters
        ----------
        n_samples : int

        Returns
        -------
        X : ndarray of shape (n_samples, n_features)
            Ordered by component.
        y : ndarray of shape (n_samples,)
            Components.
        """
        check_is_fitted(self)
        if n_samples < 1:
            raise ValueError(f"n_samples = {n_samples}, expected at least 1")
        random = check_random_state(self.random_state)
        weights = self.weights_ / self.weights_.sum()
        y = np.repeat(
            np.arange(len(weights)), random.multinomial(n_samples, weights)
        )
        kind = covariance_kind(self.covariance_type)
        noise = random.standard_normal((n_samples, self.means_.shape[1]))
        return self.means_[y] + kind.drawn(self.covariances_, y, noise), y
