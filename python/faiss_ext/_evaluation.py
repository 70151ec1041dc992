"""What a fitted mixture says of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from . import _arrays, _core
from ._covariances import covariance_kind
from ._frame import Doubles, Frame, needs_offset


class Evaluation:
    """The methods of `GaussianMixture` that need it fitted."""

    covariance_type: str
    random_state: Any
    weights_: Doubles
    means_: Doubles
    covariances_: Doubles

    def _validate(self, X: Any, reset: bool) -> NDArray[Any]:
        raise NotImplementedError

    @property
    def _kind_name(self) -> str:
        """What was fitted, whatever set_params has said since."""
        return getattr(self, "_fitted_type", self.covariance_type)

    def _evaluate(self, X: Any, **outputs: Any) -> None:
        check_is_fitted(self)
        X = self._validate(X, reset=False)
        kind = covariance_kind(self._kind_name)
        k, d = self.means_.shape
        middle = self.weights_ @ self.means_
        spread = np.square(self.means_ - middle).mean(axis=1)
        variance = self.weights_ @ (
            spread + kind.mean_variance(self.covariances_, k)
        )
        # A power of 2: then rows and means are rounded once, and alike, so
        # that a row far from all others is where its component's mean is.
        scale = float(np.exp2(-np.round(np.log2(variance) / 2)))
        offset = middle if needs_offset(X) else None
        center = np.zeros(d) if needs_offset(X) else middle
        frame = Frame(offset, center.astype(np.float32), scale)
        with np.errstate(divide="ignore"):
            log_weights = np.maximum(np.log(self.weights_), -80)
        _core.evaluate(
            X,
            self._kind_name,
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
        out : ndarray of float64 of shape (n_samples, n_components), optional
            C-contiguous. Written instead of a new array; a np.memmap will do.

        Returns
        -------
        ndarray of shape (n_samples, n_components)
            Rows sum to 1.
        """
        made: list[Doubles] = []

        def posterior(n: int) -> Doubles:
            shape = (n, len(self.weights_))
            made.append(_arrays.out(out, "out", shape, np.float64))
            return made[0]

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
        kind = covariance_kind(self._kind_name)
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
        n_samples = _arrays.count(n_samples, "n_samples")
        random = check_random_state(self.random_state)
        weights = self.weights_ / self.weights_.sum()
        y = np.repeat(
            np.arange(len(weights)), random.multinomial(n_samples, weights)
        )
        kind = covariance_kind(self._kind_name)
        noise = random.standard_normal((n_samples, self.means_.shape[1]))
        return self.means_[y] + kind.drawn(self.covariances_, y, noise), y
