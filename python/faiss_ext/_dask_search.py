"""Searches of shards by a cluster's workers."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from dask import annotate, compute, delayed
from numpy.typing import NDArray

from . import _arrays, _core
from ._dask_rows import tree
from ._dask_shards import (
    check_file,
    check_has_vectors,
    check_shard,
    read_manifest,
    searched_shard,
)
from ._selectors import SearchParameters

Found = tuple[NDArray[np.float32], NDArray[np.int64]]


def _search_shard(
    path: str, sha256: str, queries: Any, k: int, nprobe: int
) -> Found:
    index = searched_shard(path, sha256)
    if not index._core.has_lists():
        return index.search(queries, k)
    order = "distance" if index.has_mixture else None
    params = SearchParameters(nprobe=nprobe, probe_order=order)
    return index.search(queries, k, params=params)


def _best(a: Found, b: Found, similarity: bool) -> Found:
    D = np.hstack([a[0], b[0]])
    labels = np.hstack([a[1], b[1]])
    k = a[0].shape[1]
    order = np.argsort(-D if similarity else D, axis=1, kind="stable")[:, :k]
    return (
        np.take_along_axis(D, order, 1),
        np.take_along_axis(labels, order, 1),
    )


def _search_whole(
    path: str,
    sha256: str,
    queries: NDArray[np.float32],
    k: int,
    params: dict[str, Any],
) -> Found:
    return searched_shard(path, sha256).search(
        queries, k, params=SearchParameters(**params)
    )


@functools.lru_cache(maxsize=4)
def _lists_of(
    path: str, sha256: str, shard: int, shards: int
) -> _core.ListShard:
    check_shard(Path(path), sha256)
    return _core.ListShard(path, shard, shards)


def _transform(
    place: tuple[str, str, int, int], x: NDArray[np.float32]
) -> NDArray[np.float32]:
    return _lists_of(*place).transform(x)


def _step(
    place: tuple[str, str, int, int],
    x: NDArray[np.float32],
    k: int,
    params: dict[str, Any],
    answers: list[list[bytes]],
) -> Any:
    return _lists_of(*place).step(x, k, SearchParameters(**params), answers)


def _answer(
    place: tuple[str, str, int, int],
    x: NDArray[np.float32],
    k: int,
    params: dict[str, Any],
    request: bytes,
) -> bytes:
    return _lists_of(*place).answer(x, k, SearchParameters(**params), request)


def _workers() -> list[str]:
    """Addresses of the cluster's workers; none without one."""
    try:
        from distributed import get_client

        client: Any = get_client()
        return sorted(client.nthreads())
    except (ImportError, ValueError):
        return []


#: Queries that a worker takes at once.
QUERY_ROWS = 1024


def _search_shards(
    path: str,
    sha256: str,
    x: NDArray[np.float32],
    k: int,
    params: dict[str, Any],
    shards: int,
    workers: list[str],
) -> list[Found]:
    """Of each block of queries what the whole index finds: the search runs on
    one shard's worker and asks all shards, in a few rounds."""

    def task(shard: int, call: Callable[..., Any], *args: Any) -> Any:
        place = (path, sha256, shard, shards)
        if not workers:
            return delayed(call)(place, *args)
        # So that no worker reads more shards than it has to. Where it dies
        # another takes its place.
        home = workers[shard % len(workers)]
        with annotate(workers=[home], allow_other_workers=True):
            return delayed(call)(place, *args)

    def run(tasks: list[Any]) -> Any:
        return compute(*tasks, optimize_graph=False)

    (x,) = run([task(0, _transform, x)])
    blocks = [
        x[b : b + QUERY_ROWS] for b in range(0, max(len(x), 1), QUERY_ROWS)
    ]
    answers: list[list[list[bytes]]] = [[] for _ in blocks]
    found: dict[int, Found] = {}
    while len(found) < len(blocks):
        left = [i for i in range(len(blocks)) if i not in found]
        steps = run(
            [
                task(i % shards, _step, blocks[i], k, params, answers[i])
                for i in left
            ]
        )
        asked = []
        for i, (D, labels, requests) in zip(left, steps, strict=True):
            if requests is None:
                found[i] = D, labels
            else:
                asked.append((i, requests))
        told = iter(
            run(
                [
                    task(shard, _answer, blocks[i], k, params, request)
                    for i, requests in asked
                    for shard, request in enumerate(requests)
                ]
            )
        )
        for i, _ in asked:
            answers[i].append([next(told) for _ in range(shards)])
    return [found[i] for i in range(len(blocks))]


def search(
    manifest: str | os.PathLike[str],
    queries: Any,
    k: int,
    *,
    nprobe: int | None = None,
    params: SearchParameters | dict[str, Any] | None = None,
    shards: int | None = None,
) -> Found:
    """Searches on all workers.

    With `nprobe` all shards that `build` wrote, each on one worker: whole
    lists in the order of their distance (``probe_order="distance"``), which is
    the same for all shards. The result is that of the unsharded index with
    this order and nprobe.

    With `params` the one index that ``merge(manifest, on_disk=True)`` made,
    whose lists are spread over workers: each has the codes of its lists and
    all cells in memory, and the vectors are in the folder. There is one plan,
    the whole index's: which lists and cells a query looks at, how many codes,
    which entries are compared. The result is that of this index in one
    process, distances to the bit and the same ids, whatever the parameters
    are. Of whole lists equal distances may change places; behind PCA or OPQ
    queries must be as many, for other batches round differently.

    Parameters
    ----------
    manifest : str or path
        What `build` returned.
    queries : array of shape (n, d)
    k : int
    nprobe : int, optional
    params : SearchParameters or dict, optional
        This or nprobe; an empty dict for what the index is set to. A dict
        holds what `SearchParameters` takes, and a `sel` in it is ids, a mask
        or a range: selectors do not travel.
    shards : int, optional
        Of the merged index's lists; as many as workers if left out. With 1
        each worker has all codes, and queries are spread instead: less
        traffic. An index without a mixture (IVF) takes 1 only, and does if
        left out.

    Returns
    -------
    D, I : ndarray of shape (n, k)
    """
    parts = read_manifest(manifest)
    folder = Path(os.path.realpath(manifest)).parent
    x = _arrays.floats(queries, "queries", parts["d"])
    _core.check_finite("queries", x)
    k = _arrays.count(k, "k")
    if (nprobe is None) == (params is None):
        raise ValueError("nprobe, params: expected one of the two")
    if params is not None:
        if isinstance(params, SearchParameters):
            params = params._given()
        if not isinstance(params, dict):
            raise TypeError(
                f"params = {params!r}, expected SearchParameters or a dict"
            )
        SearchParameters(**params)  # wrong input is told here
        if hasattr(params.get("sel"), "is_member"):
            raise TypeError(
                "params: a selector does not travel, expected a dict "
                "with sel as ids, a mask or a range"
            )
        if "merged" not in parts:
            raise ValueError(
                f"{manifest}: its shards are not merged on disk; "
                "merge(manifest, on_disk=True) does it"
            )
        merged = str(folder / parts["merged"]["file"])
        sha256 = parts["merged"]["sha256"]
        if "ivfdata" in parts["merged"]:  # none in older manifests
            check_file(folder, parts["merged"]["ivfdata"])
        workers = _workers()
        spreads = "GMM" in parts["factory"]
        if shards is None:
            shards = max(1, len(workers)) if spreads else 1
        shards = _arrays.count(shards, "shards")
        if shards > 1 and not spreads:
            raise ValueError(
                f"shards = {shards}: the lists of {parts['factory']} are not "
                "spread over workers, expected 1 (or a GMM index)"
            )
        if shards > 1:
            blocks = _search_shards(
                merged, sha256, x, k, params, shards, workers
            )
        else:
            blocks = list(
                compute(
                    *(
                        delayed(_search_whole)(
                            merged, sha256, x[b : b + QUERY_ROWS], k, params
                        )
                        for b in range(0, max(len(x), 1), QUERY_ROWS)
                    )
                )
            )
        return (
            np.concatenate([b[0] for b in blocks]),
            np.concatenate([b[1] for b in blocks]),
        )
    check_has_vectors(parts, "search with nprobe")
    q = delayed(x)
    nprobe = _arrays.count(nprobe, "nprobe")
    similarity = parts["metric"] == _core.METRIC_INNER_PRODUCT
    found: Found = tree(
        functools.partial(_best, similarity=similarity),
        [
            delayed(_search_shard)(
                str(folder / s["file"]), s["sha256"], q, k, nprobe
            )
            for s in parts["shards"]
        ],
    ).compute()
    return found
