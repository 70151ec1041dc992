"""faiss.Kmeans by the mixture's hard step."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from . import _arrays, _core
from ._arrays import Floats, Ids
from ._factory import index_factory
from ._index import Index
from ._progress import Bar


class Kmeans:
    """k-means, with the parameters of faiss.Kmeans.

    But ``frozen_centroids``, ``update_index``, ``decode_block_size``,
    ``use_faster_subsampling``, ``progressive_dim_steps`` and, of FAISS 1.15,
    ``early_stop_threshold``, ``check_input_data_for_NaNs``,
    ``use_super_kmeans``, ``init_method`` (`init` is in its place) and
    ``afkmc2_chain_length``.

    Parameters
    ----------
    d, k : int
        Dimension of the vectors, and how many centroids.
    niter : int
        Iterations.
    nredo : int
        Runs, of which the one with the least objective is kept.
    verbose : bool
        Prints the objective of each iteration, above a bar of tqdm's where it
        is installed.
    spherical : bool
        Centroids are normalised after each iteration, and vectors assigned by
        inner product.
    int_centroids : bool
        Centroids are rounded at the end.
    max_points_per_centroid : int
        Training uses a random sample of so many vectors a centroid, among
        those with a weight above 0.
    min_points_per_centroid : int
        Fewer than so many a centroid are warned of.
    seed : int
    gpu : bool or int
        True takes CUDA and fails where there is none; False takes the CPU.
    init : {"random", "k-means++"}

    Attributes
    ----------
    centroids : ndarray of shape (k, d)
    obj : ndarray
        The sum of squared distances of each iteration of the best run.
    iteration_stats : list of dict
        ``obj``, ``time``, ``time_search``, ``imbalance_factor``, ``nsplit``.
    index : Index
        Of the centroids, ``"Flat"``.
    backend : str
        What trained it.
    """

    def __init__(
        self,
        d: int,
        k: int,
        niter: int = 25,
        nredo: int = 1,
        *,
        verbose: bool = False,
        spherical: bool = False,
        int_centroids: bool = False,
        max_points_per_centroid: int = 256,
        min_points_per_centroid: int = 39,
        seed: int = 1234,
        gpu: bool | int = False,
        init: str = "random",
    ) -> None:
        self.d = _arrays.count(d, "d")
        self.k = _arrays.count(k, "k")
        self.niter = _arrays.count(niter, "niter", 0, (1 << 31) - 1)
        self.nredo = _arrays.count(nredo, "nredo")
        self.verbose = _arrays.flag(verbose, "verbose")
        self.spherical = _arrays.flag(spherical, "spherical")
        self.int_centroids = _arrays.flag(int_centroids, "int_centroids")
        self.max_points_per_centroid = _arrays.count(
            max_points_per_centroid, "max_points_per_centroid"
        )
        self.min_points_per_centroid = _arrays.count(
            min_points_per_centroid, "min_points_per_centroid", 0
        )
        self.seed = _arrays.count(seed, "seed", None)
        if not isinstance(gpu, (bool, np.bool_)):
            gpu = _arrays.count(gpu, "gpu", 0)
        self.gpu = gpu
        self.init = _arrays.choice(init, "init", ("random", "k-means++"))
        # None until train has found them, which the types leave out.
        self.centroids: Floats = cast(Any, None)
        self.obj: NDArray[np.float64] = cast(Any, None)
        self.iteration_stats: list[dict[str, Any]] = []
        self.backend = ""

    def train(
        self,
        x: Any,
        weights: Any = None,
        init_centroids: Any = None,
        progress: Callable[[int, float], None] | None = None,
    ) -> float:
        """Finds the centroids.

        Parameters
        ----------
        x : array of shape (n, d)
            Of any real dtype; read in blocks.
        weights : array of shape (n,), optional
        init_centroids : array of shape (k, d), optional
        progress : callable, optional
            Called with the iteration's number and objective.

        Returns
        -------
        float
            The last objective: the sum of squared distances.
        """
        if self.gpu and not _core.cuda_available():
            raise ValueError(
                f"gpu = {self.gpu}: {_core.why_no_cuda()}, expected False"
            )
        a = _arrays.matrix(x, "x", self.d)
        w = None if weights is None else self._weights(weights, len(a))
        if len(a) < self.k:
            raise ValueError(
                f"x: {len(a)} vectors, expected at least k = {self.k}"
            )
        least = self.k * self.min_points_per_centroid
        if len(a) < least:
            warnings.warn(
                f"x: {len(a)} vectors, expected at least {least}, "
                f"min_points_per_centroid = {self.min_points_per_centroid} "
                f"for each of k = {self.k}",
                stacklevel=2,
            )
        _arrays.check_finite(a, "x")
        most = self.k * self.max_points_per_centroid
        if len(a) > most:
            rows = self._drawn(
                len(a) if w is None else np.flatnonzero(w), most
            )
            a = np.ascontiguousarray(a[rows])
            w = None if w is None else w[rows]
        a = _arrays.real(a)
        means = None
        if init_centroids is not None:
            means = _arrays.floats(init_centroids, "init_centroids", self.d)
            if len(means) != self.k:
                raise ValueError(
                    f"init_centroids: {len(means)}, expected k = {self.k}"
                )
            _core.check_finite("init_centroids", means)
        best = None
        for redo in range(self.nredo if means is None else 1):
            fitted = self._run(a, w, means, redo, progress)
            if best is None or fitted["obj"][-1:] < best["obj"][-1:]:
                best = fitted
        assert best is not None
        self.backend = best["backend"]
        self.centroids = best["means"]
        if self.int_centroids:
            self.centroids = np.round(best["means"])
        self.obj = np.array(best["obj"])
        self.iteration_stats = best["stats"]
        return float(self.obj[-1]) if len(self.obj) else 0.0

    def _weights(self, weights: Any, n: int) -> Floats:
        w = np.ascontiguousarray(
            _arrays.as_array(weights, "weights"), np.float32
        )
        if w.shape != (n,):
            raise ValueError(f"weights: shape {w.shape}, expected ({n},)")
        wrong = np.flatnonzero(~((w >= 0) & (w < np.inf)))
        if len(wrong):
            raise ValueError(
                f"weights[{wrong[0]}] = {w[wrong[0]]}, expected a finite "
                "value of at least 0"
            )
        positive = np.count_nonzero(w)
        if positive < self.k:
            raise ValueError(
                f"weights: {positive} are positive, expected at least "
                f"k = {self.k}"
            )
        return w

    def _drawn(self, among: int | Ids, most: int) -> Ids:
        """Row numbers among those, or below that, in their order."""
        if not isinstance(among, int) and len(among) <= most:
            return among
        random = np.random.default_rng(abs(self.seed))
        return np.sort(random.choice(among, most, replace=False))

    def _run(
        self,
        a: np.ndarray[Any, Any],
        w: np.ndarray[Any, Any] | None,
        means: Floats | None,
        redo: int,
        progress: Callable[[int, float], None] | None,
    ) -> dict[str, Any]:
        total = float(len(a) if w is None else w.sum(dtype=np.float64))
        done = 0

        def report(hard: bool, objective: float, seconds: float) -> None:
            nonlocal done
            done += 1
            bar.say(f"iteration {done}: objective {objective * total:g}")
            bar.advance()
            if progress is not None:
                progress(done, objective * total)

        with Bar(self.verbose, self.niter, "k-means", "iterations") as bar:
            fitted = _core.train(
                a,
                w,
                self.k,
                init=self.init,
                hard_iterations=self.niter,
                niter=0,
                seed=abs(self.seed) + redo,
                spherical=self.spherical,
                backend="cuda" if self.gpu else "cpu",
                means=means,
                progress=report,
            )
        fitted["obj"] = [it[1] * total for it in fitted["iterations"]]
        fitted["stats"] = [
            {
                "obj": it[1] * total,
                "time": it[2],
                "time_search": it[3],
                "imbalance_factor": it[5],
                "nsplit": it[4],
            }
            for it in fitted["iterations"]
        ]
        return fitted

    def assign(self, x: Any) -> tuple[Floats, Ids]:
        """The nearest centroid of each vector.

        Parameters
        ----------
        x : array of shape (n, d)

        Returns
        -------
        D : ndarray of shape (n,)
            Squared distances; inner products where spherical.
        I : ndarray of shape (n,)
        """
        if self.centroids is None:
            raise ValueError("assign: call train first")
        index = self.index
        a = _arrays.matrix(x, "x", self.d)
        D = np.empty((len(a), 1), np.float32)
        labels = np.empty((len(a), 1), np.int64)
        for begin, block in _arrays.float_blocks(a):
            end = begin + len(block)
            with _arrays.block_of("x", begin):
                index.search(block, 1, D=D[begin:end], I=labels[begin:end])
        return D[:, 0], labels[:, 0]

    @property
    def index(self) -> Index:
        """The centroids as an index, made anew with each call."""
        if self.centroids is None:
            raise AttributeError("index: call train first")
        out = index_factory(
            self.d,
            "Flat",
            _core.METRIC_INNER_PRODUCT if self.spherical else _core.METRIC_L2,
        )
        out.add(self.centroids)
        return out
