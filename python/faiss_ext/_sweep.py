"""Recall against time and distances, for settings of an index."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from . import _arrays, _core
from ._index import Index
from ._selectors import SearchParameters

TARGETS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


class Row(TypedDict):
    """What one setting reached."""

    setting: str
    target_recall: float | None
    nprobe: int | None
    recall: float
    qps: float
    distances: float


def exact_neighbors(
    blocks: Iterable[Any], queries: Any, k: int, metric: int
) -> NDArray[np.int64]:
    """Ids of the k nearest of all rows, by comparing with each.

    Memory is one block and what was found. Shape (len(queries), k).
    """
    q = _arrays.floats(queries, "queries")
    better_is_larger = metric == _core.METRIC_INNER_PRODUCT
    D = np.full((len(q), k), -np.inf if better_is_larger else np.inf)
    ids = np.full((len(q), k), -1, np.int64)
    begin = 0
    for block in blocks:
        flat = _core.index_factory(q.shape[1], "Flat", metric)
        flat.add(_arrays.floats(block, "base", q.shape[1]))
        few = min(k, len(block))
        d = np.empty((len(q), few), np.float32)
        i = np.empty((len(q), few), np.int64)
        flat.search(q, d, i)
        all_d = np.hstack([D, d])
        all_i = np.hstack([ids, i + begin])
        order = np.argsort(
            -all_d if better_is_larger else all_d, axis=1, kind="stable"
        )[:, :k]
        D = np.take_along_axis(all_d, order, 1)
        ids = np.take_along_axis(all_i, order, 1)
        begin += len(block)
    return ids


def recall_of(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """Share of the true neighbours that were found; -1 is none."""
    hits = 0
    for f, t in zip(found, truth, strict=True):
        hits += len(np.intersect1d(f, t[t >= 0]))
    return hits / max(1, int(np.count_nonzero(truth >= 0)))


@contextmanager
def set_to(
    index: Index, params: SearchParameters | None
) -> Iterator[SearchParameters | None]:
    """What a search with these takes: none where vectors are compared again
    (RFlat), which FAISS gives no parameters; the index is set to them
    meanwhile."""
    if params is None or not hasattr(index, "k_factor"):
        yield params
        return
    given = params._given()
    if "target_recall" in given and not index.has_mixture:
        raise ValueError("params: target_recall is for a GMM index")
    if index.has_mixture and "nprobe" in given:
        given.setdefault("target_recall", 0.0)
    before = {name: getattr(index, name) for name in given}
    try:
        for name, value in given.items():
            setattr(index, name, value)
        yield None
    finally:
        for name, value in before.items():
            setattr(index, name, value)


def measure(
    index: Index,
    queries: NDArray[np.float32],
    truth: NDArray[Any],
    params: SearchParameters | None,
    repeat: int = 3,
) -> tuple[float, float, float]:
    """Recall, queries a second (the fastest of `repeat` runs, all queries at
    once) and distances a query."""
    k = truth.shape[1]
    best = np.inf
    with set_to(index, params) as params:
        for _ in range(repeat):
            _core.reset_stats()
            begin = time.perf_counter()
            found = index.search(queries, k, params=params)[1]
            best = min(best, time.perf_counter() - begin)
    distances = _core.stats()["ndis"] / len(queries)
    return recall_of(found, truth), len(queries) / best, distances


def nprobes(nlist: int) -> list[int]:
    """1, 2, 4, ... up to a quarter of the lists, and a little between."""
    out = [1]
    while out[-1] * 2 <= max(1, nlist // 4):
        out.append(out[-1] * 2)
    return out


def sweep(
    index: Index,
    queries: Any,
    truth: NDArray[Any],
    *,
    targets: Iterable[float] = TARGETS,
    repeat: int = 3,
    progress: Callable[[Row], None] | None = None,
) -> list[Row]:
    """Searches with each setting.

    Parameters
    ----------
    index : Index
    queries : array of shape (nq, d)
    truth : array of int of shape (nq, k)
        The true neighbours.
    targets : iterable of float
        Values of target_recall; used where the index is calibrated.
    repeat : int
        Runs of each setting, of which the fastest counts.
    progress : callable, optional
        Called with each row.

    Returns
    -------
    list of Row
    """
    q = _arrays.floats(queries, "queries", index.d)
    if len(q) != len(truth):
        raise ValueError(
            f"truth: {len(truth)} rows, expected one for each of {len(q)} "
            "queries"
        )
    settings: list[tuple[str, SearchParameters | None]] = []
    if not index._core.has_lists():
        settings.append(("exhaustive", None))
    else:
        for n in nprobes(index.nlist):
            settings.append((f"nprobe={n}", SearchParameters(nprobe=n)))
    if index.has_mixture and index.calibration.fitted:
        for target in targets:
            settings.append(
                (
                    f"target_recall={target:g}",
                    SearchParameters(target_recall=target),
                )
            )
    rows: list[Row] = []
    for name, params in settings:
        recall, qps, distances = measure(index, q, truth, params, repeat)
        row: Row = {
            "setting": name,
            "target_recall": params.target_recall if params else None,
            "nprobe": params.nprobe if params else None,
            "recall": recall,
            "qps": qps,
            "distances": distances,
        }
        rows.append(row)
        if progress is not None:
            progress(row)
    return rows
