"""The mixture as a scikit-learn estimator."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from . import _core
from ._arrays import (
    as_array,
    has_mask,
    on_device,
    readable_on_device,
    real,
    sample_rows,
)
from ._covariances import covariance_kind
from ._evaluation import Evaluation
from ._fit_input import (
    MERGE_UP_TO,
    MOST,
    check_parameters,
    check_range,
    fitted_or_as_before,
    goes_on,
    merged,
    relative_weights,
    start_values,
)
from ._frame import Doubles, EStep, Frame, offset_of
from ._progress import Bar

try:
    from sklearn.utils.validation import validate_data
except ImportError:  # scikit-learn before 1.6

    def validate_data(estimator: Any, X: Any, **options: Any) -> Any:
        return estimator._validate_data(X, **options)


class GaussianMixture(Evaluation, DensityMixin, BaseEstimator):
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
        one matrix a component; one matrix for all. With `backend` "auto"
        matrices are fitted on the CPU. What is set after fitting is of the
        next fit.
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
        A weight of 0 stands for exp(-80), here and in `weights_`: such a
        component comes back where rows are nearest to it.
    means_init : array of shape (n_components, n_features), optional
    precisions_init : array, optional
        Inverse variances or matrices, shaped as `covariances_`.
    random_state : int, RandomState or None
    warm_start : bool, default=False
        `fit` starts from where the last one ended, on rows of as many
        features, with the same n_components and covariance_type.
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

    lower_bound_: float

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
            float32, float16 and uint8 in a GPU's memory (torch, cupy) are read
            there, unless there are weights.
        y : ignored
        sample_weight : array of shape (n_samples,), optional
            Non-negative. Only their ratios matter.

        Returns
        -------
        GaussianMixture
            Itself.

        Raises
        ------
        ValueError, TypeError
            For data or parameters that cannot be, naming them.
        """
        check_parameters(self)
        with fitted_or_as_before(self):
            return self._fit(X, sample_weight)

    def _fit(self, X: Any, sample_weight: Any) -> GaussianMixture:
        warm = goes_on(self)
        if sample_weight is None and self._fits_on_device():
            d = self.n_features_in_ if warm else None
            there = readable_on_device(X, d)
            if there is not None and len(there) >= self.n_components:
                return self._fit_on_device(there)
        X = self._validate(X, reset=not warm)
        check_range(X)
        weights = None
        if sample_weight is not None:
            weights = relative_weights(sample_weight, X)
        if len(X) < self.n_components:
            raise ValueError(
                f"Expected n_samples >= n_components but got n_components = "
                f"{self.n_components}, n_samples = {len(X)}"
            )
        if X.size <= MERGE_UP_TO:
            X, weights = merged(X, weights)
        offset = offset_of(X, weights)
        center, scale, _ = _core.frame_of(X, weights, offset)
        frame = Frame(offset, center, scale)
        backend = self.backend
        if backend == "auto" and self.covariance_type in ("full", "tied"):
            backend = "cpu"
        engine = _core.EStepEngine(X, weights, center, scale, backend, offset)
        return self._fit_by(engine, frame, X, weights)

    def _fits_on_device(self) -> bool:
        if self.backend == "auto":
            return self.covariance_type not in ("full", "tied")
        return self.backend == "cuda"

    def _fit_on_device(self, X: Any) -> GaussianMixture:
        """Only rows that means start among come to the CPU."""
        self.n_features_in_ = X.shape[1]
        center, scale, _ = _core.frame_of(X, None)
        random = check_random_state(self.random_state)
        most = max(16384, 256 * self.n_components)
        seed = int(random.randint(np.iinfo(np.int32).max))
        start = as_array(sample_rows(X, most, seed)[0], "X")
        engine = _core.EStepEngine(X, None, center, scale, "cuda")
        return self._fit_by(engine, Frame(None, center, scale), start, None)

    def _fit_by(
        self,
        engine: EStep,
        frame: Frame,
        X: NDArray[Any],
        weights: NDArray[np.float32] | None,
    ) -> GaussianMixture:
        """Fits by E-steps of `engine`; means start among the rows X."""
        self.backend_ = engine.backend
        random = check_random_state(self.random_state)
        if not goes_on(self):
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
            bounds, converged = self._iterate(engine, frame, self.lower_bound_)
        self._fitted_type = self.covariance_type
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

    def _validate(self, X: Any, reset: bool) -> NDArray[Any]:
        if on_device(X) or has_mask(X):
            X = as_array(X, "X")
        X = validate_data(
            self,
            X,
            reset=reset,
            dtype="numeric",
            ensure_min_samples=2 if reset else 1,
        )
        return real(X)

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
        frame: Frame,
        engine: EStep,
        random: np.random.RandomState,
    ) -> None:
        k, d = self.n_components, X.shape[1]
        kind = covariance_kind(self.covariance_type)
        given = {
            name: start_values(getattr(self, name), name)
            for name in ("weights_init", "means_init", "precisions_init")
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
            if name == "means_init" and (
                value is not None and (np.abs(value) > MOST).any()
            ):
                raise ValueError(
                    f"{name}: {np.abs(value).max():g} in size, expected at "
                    f"most {MOST:g}"
                )
        w, means, precisions = given.values()
        if w is not None and (
            not (w >= 0).all() or not np.isclose(w.sum(), 1)
        ):
            raise ValueError(
                "weights_init: expected values of at least 0 that sum to 1"
            )
        if precisions is not None:
            variances = kind.covariances_of(precisions)
            kind.check_start(variances, frame.scale)
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
        frame: Frame,
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
        frame: Frame,
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
        frame: Frame,
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
        self, engine: EStep, frame: Frame, before: float = -np.inf
    ) -> tuple[list[float], bool]:
        """Lower bounds and whether EM converged; `before` is the last
        one of an earlier fit that this goes on from."""
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
                if abs(bound - before) < self.tol:
                    return bounds, True
                before = bound
        return bounds, False
