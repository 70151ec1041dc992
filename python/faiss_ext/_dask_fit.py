"""A mixture fitted by a cluster's workers."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from dask import delayed
from numpy.typing import NDArray

from . import _core
from ._arrays import choice
from ._dask_rows import Block, Rows, as_block, tree
from ._estimator import GaussianMixture
from ._fit_input import BACKENDS, MOST, check_parameters
from ._frame import Frame, needs_offset

Moments = tuple[int, NDArray[np.float64], float]


def _moments(block: Block, pivot: NDArray[np.float64], name: str) -> Moments:
    """Rows, their sum and the sum of their squares about the pivot."""
    block = as_block(block)
    total = np.zeros(len(pivot))
    squares = 0.0
    for begin in range(0, len(block), 4096):
        rows = np.asarray(block[begin : begin + 4096], np.float64)
        fits = np.abs(rows) <= MOST  # no NaN does
        if not fits.all():
            row, column = np.argwhere(~fits)[0]
            raise ValueError(
                f"{name}: row {begin + row} of these has the value "
                f"{rows[row, column]:g} in dimension {column}, expected "
                f"finite values of at most {MOST:g} in size"
            )
        y = rows - pivot
        total += y.sum(axis=0)
        squares += float(np.square(y).sum())
    return len(block), total, squares


def _add_moments(a: Moments, b: Moments) -> Moments:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _frame_of(rows: Rows) -> Frame:
    pivot = np.asarray(rows.sample(None, 1)[0], np.float64)
    n, total, squares = tree(
        _add_moments,
        [
            delayed(_moments, pure=True)(block, pivot, name)
            for block, name in zip(rows.blocks, rows.names, strict=True)
        ],
    ).compute()
    mean = total / n
    variance = max(squares / n - float(mean @ mean), 0.0) / rows.d
    scale = float(np.float32(1 / np.sqrt(variance))) if variance > 0 else 1.0
    middle = pivot + mean
    if needs_offset(np.empty(0, rows.dtype)):
        return Frame(middle, np.zeros(rows.d, np.float32), scale)
    return Frame(None, middle.astype(np.float32), scale)


def _block_stats(
    block: Block,
    frame: Frame,
    backend: str,
    covariance_type: str,
    means: NDArray[np.float32],
    variances: NDArray[np.float32],
    log_weights: NDArray[np.float32],
    hard: bool,
) -> _core.SufficientStats:
    engine = _core.EStepEngine(
        np.ascontiguousarray(as_block(block)),
        None,
        frame.center,
        frame.scale,
        backend,
        frame.offset,
    )
    return engine.accumulate(
        covariance_type, means, variances, log_weights, hard
    )


def _add_stats(
    a: _core.SufficientStats, b: _core.SufficientStats
) -> _core.SufficientStats:
    out = copy.copy(a)  # Dask may run this again with the same a
    out.merge(b)
    return out


class _Engine:
    """E-steps on the cluster."""

    def __init__(self, rows: Rows, frame: Frame, backend: str) -> None:
        self.rows = rows
        self.frame = frame
        self.backend = backend

    def accumulate(
        self,
        covariance_type: str,
        means: NDArray[np.float32],
        variances: NDArray[np.float32],
        log_weights: NDArray[np.float32],
        hard: bool,
    ) -> _core.SufficientStats:
        model = [
            delayed(v, pure=True) for v in (means, variances, log_weights)
        ]
        stats: _core.SufficientStats = tree(
            _add_stats,
            [
                delayed(_block_stats, pure=True)(
                    block,
                    self.frame,
                    self.backend,
                    covariance_type,
                    *model,
                    hard,
                )
                for block in self.rows.blocks
            ],
        ).compute()
        return stats


def fit(
    x: Any,
    n_components: int,
    *,
    block_rows: int | None = None,
    sample_rows: int | None = None,
    backend: str = "cpu",
    **options: Any,
) -> GaussianMixture:
    """A mixture fitted by all workers.

    Parameters
    ----------
    x : dask array of shape (n, d), or paths of files
        Files as the command line reads them, of one dtype. Persist an array
        that fits in the workers' memory.
    n_components : int
    block_rows : int, optional
        Rows of a block, part of what decides the result's last bits; 2^25
        values if left out.
    sample_rows : int, optional
        Evenly spaced rows that means start among; 256 a component and at
        least 16,384 if left out.
    backend : {"cpu", "cuda", "auto"}
        Of each worker.
    **options
        Of `GaussianMixture`.

    Returns
    -------
    GaussianMixture
        Fitted.

    Raises
    ------
    ValueError
        Naming file and row for a value that is not finite.
    """
    model = GaussianMixture(n_components, **options)
    check_parameters(model)
    choice(backend, "backend", BACKENDS)
    rows = Rows(x, block_rows)
    if rows.n < n_components:
        raise ValueError(
            f"x: {rows.n} rows, expected at least n_components = "
            f"{n_components}"
        )
    start = rows.sample(sample_rows, max(16384, 256 * n_components))
    frame = _frame_of(rows)
    model.n_features_in_ = rows.d
    return model._fit_by(_Engine(rows, frame, backend), frame, start, None)
