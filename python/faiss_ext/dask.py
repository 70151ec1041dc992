"""Training, building and searching on the workers of a Dask cluster.

Scheduling, transport and retries are Dask's. E-steps run over global blocks of
rows of one size, and their sums are merged in a tree of fixed shape: with one
backend and instruction set the fitted mixture has the same bits whatever the
number of workers, and whichever of them die.

Workers write and read shards by path: the folder must be one that all of them
see. A worker with one thread leaves all its cores to OpenMP.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from dask import annotate, compute, delayed
from numpy.typing import NDArray

from . import _arrays, _core, _files
from ._estimator import GaussianMixture, _Frame, _needs_offset
from ._index import Index, index_factory, read_index, write_index
from ._selectors import SearchParameters

__all__ = ["build", "fit", "merge", "search"]

#: Values of a block, whose sums are added up before any are merged: Dask's
#: workers give memory back after each (MALLOC_TRIM_THRESHOLD_), and take time
#: to have it again.
BLOCK_VALUES = 1 << 25
_FORMAT = 1


class _Rows:
    """Vectors as blocks of so many rows that workers compute or read."""

    def __init__(self, x: Any, block_rows: int | None) -> None:
        if hasattr(x, "to_delayed"):
            if x.ndim != 2 or any(np.isnan(x.shape)):
                raise ValueError(
                    f"x: shape {x.shape}, expected two known dimensions "
                    "(compute_chunk_sizes)"
                )
            self.n, self.d = (int(v) for v in x.shape)
            self.dtype = np.dtype(x.dtype)
            block_rows = self._choose(block_rows)
            x = x.rechunk({0: block_rows, 1: -1})
            self.blocks = list(x.to_delayed().ravel())
            self.names = [f"x, rows from {b}" for b in self._begins()]
            return
        if isinstance(x, np.ndarray):
            raise TypeError(
                "x: an ndarray, expected a dask array "
                "(dask.array.from_array) or paths of files"
            )
        if isinstance(x, (str, os.PathLike)):
            x = [x]
        files = [(os.fspath(p), _files.open_vectors(p)) for p in x]
        if not files:
            raise ValueError("x: no files")
        self.d = files[0][1].d
        self.dtype = files[0][1].dtype
        for path, vectors in files:
            if vectors.d != self.d or vectors.dtype != self.dtype:
                raise ValueError(
                    f"{path}: {vectors.d} columns of {vectors.dtype}, "
                    f"expected {self.d} of {self.dtype}"
                )
        block_rows = self._choose(block_rows)
        self.n = sum(v.n for _, v in files)
        self.blocks, self.names = [], []
        for begin in self._begins():
            end = min(begin + block_rows, self.n)
            parts, first = [], 0
            for path, vectors in files:
                a, b = max(begin, first), min(end, first + vectors.n)
                if a < b:
                    parts.append((path, a - first, b - first))
                first += vectors.n
            self.blocks.append(_Read(tuple(parts)))
            self.names.append(f"{parts[0][0]}, rows from {parts[0][1]}")

    def _choose(self, block_rows: int | None) -> int:
        if block_rows is None:
            block_rows = max(1024, BLOCK_VALUES // self.d)
        self.block_rows = _arrays.count(block_rows, "block_rows")
        return self.block_rows

    def _begins(self) -> range:
        return range(0, self.n, self.block_rows)

    def sample(self, most: int) -> NDArray[Any]:
        """At most that many rows, evenly spaced."""
        most = min(most, self.n)
        parts = [
            delayed(_spaced, pure=True)(block, begin, self.n, most)
            for begin, block in zip(self._begins(), self.blocks, strict=True)
        ]
        return np.concatenate(compute(*parts))


@dataclasses.dataclass(frozen=True)
class _Read:
    """Rows of files that whoever needs them reads: no task of their own, which
    another worker could be given."""

    parts: tuple[tuple[str, int, int], ...]


Block = NDArray[Any] | _Read


def _array(block: Block) -> NDArray[Any]:
    if not isinstance(block, _Read):
        return block
    rows = [_files.open_vectors(p).array()[a:b] for p, a, b in block.parts]
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def _spaced(block: Block, begin: int, n: int, most: int) -> NDArray[Any]:
    block = _array(block)
    i = np.arange(begin, begin + len(block))
    return np.asarray(block[(i + 1) * most // n > i * most // n])


def _tree(merge: Callable[[Any, Any], Any], leaves: Sequence[Any]) -> Any:
    """Merges neighbours, then neighbours of these: a shape of the number of
    leaves alone."""
    level = list(leaves)
    while len(level) > 1:
        pairs = [
            delayed(merge, pure=True)(level[i], level[i + 1])
            for i in range(0, len(level) - 1, 2)
        ]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


Moments = tuple[int, NDArray[np.float64], float]


def _moments(block: Block, pivot: NDArray[np.float64], name: str) -> Moments:
    """Rows, their sum and the sum of their squares about the pivot."""
    block = _array(block)
    total = np.zeros(len(pivot))
    squares = 0.0
    for begin in range(0, len(block), 4096):
        y = np.asarray(block[begin : begin + 4096], np.float64) - pivot
        if not np.isfinite(y).all():
            row = begin + int(np.flatnonzero(~np.isfinite(y).all(axis=1))[0])
            raise ValueError(f"{name}: row {row} of these is not finite")
        total += y.sum(axis=0)
        squares += float(np.square(y).sum())
    return len(block), total, squares


def _add_moments(a: Moments, b: Moments) -> Moments:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _frame_of(rows: _Rows) -> _Frame:
    pivot = np.asarray(rows.sample(1)[0], np.float64)
    n, total, squares = _tree(
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
    if _needs_offset(np.empty(0, rows.dtype)):
        return _Frame(middle, np.zeros(rows.d, np.float32), scale)
    return _Frame(None, middle.astype(np.float32), scale)


def _block_stats(
    block: Block,
    frame: _Frame,
    backend: str,
    covariance_type: str,
    means: NDArray[np.float32],
    variances: NDArray[np.float32],
    log_weights: NDArray[np.float32],
    hard: bool,
) -> _core.SufficientStats:
    engine = _core.EStepEngine(
        np.ascontiguousarray(_array(block)),
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

    def __init__(self, rows: _Rows, frame: _Frame, backend: str) -> None:
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
        stats: _core.SufficientStats = _tree(
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
    model._check_parameters()
    rows = _Rows(x, block_rows)
    if rows.n < n_components:
        raise ValueError(
            f"x: {rows.n} rows, expected at least n_components = "
            f"{n_components}"
        )
    frame = _frame_of(rows)
    start = rows.sample(sample_rows or max(16384, 256 * n_components))
    model.n_features_in_ = rows.d
    return model._fit_by(_Engine(rows, frame, backend), frame, start, None)


# Indexes in shards


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def _write(index: Index, path: Path) -> str:
    """A whole file or none, and its checksum."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write_index(index, partial)
        digest = _sha256(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return digest


def _build_shard(
    folder: str,
    trained_sha256: str,
    name: str,
    begin: int,
    blocks: list[Block],
    block_names: list[str],
) -> dict[str, Any]:
    index = _load(f"{folder}/trained.index", trained_sha256, False)
    if index.has_mixture:
        index.calibrate_on_add = False
    at = begin
    for block, block_name in zip(
        map(_array, blocks), block_names, strict=True
    ):
        try:
            index.add_with_ids(block, np.arange(at, at + len(block)))
        except ValueError as error:
            raise ValueError(f"{block_name}: {error}") from None
        at += len(block)
    path = Path(folder) / name
    return {
        "file": name,
        "begin": begin,
        "rows": at - begin,
        "sha256": _write(index, path),
    }


def _check(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: a shard of the manifest is missing")
    if _sha256(path) != sha256:
        raise ValueError(
            f"{path}: its checksum is not the manifest's: it is damaged, or "
            "of another training"
        )


def _load(path: str, sha256: str, cached: bool = True) -> Index:
    if cached:
        return _load_once(path, sha256)
    _check(Path(path), sha256)
    return read_index(path)


@functools.lru_cache(maxsize=4)
def _load_once(path: str, sha256: str) -> Index:
    return _load(path, sha256, False)


def build(
    x: Any,
    factory: str,
    out: str | os.PathLike[str],
    *,
    metric: int = _core.METRIC_L2,
    shard_rows: int = 1 << 20,
    sample_rows: int | None = None,
    block_rows: int | None = None,
) -> Path:
    """Shards of one index, which share what was trained.

    Parameters
    ----------
    x : dask array of shape (n, d), or paths of files
    factory : str
        As for `index_factory`. Trained here, on a sample.
    out : str or path
        A folder that all workers see.
    metric : int
    shard_rows : int
        Rows of a shard at most, whole blocks; a worker holds as many.
    sample_rows : int, optional
        Evenly spaced rows to train on; 256 a list and at least 65,536 if left
        out.
    block_rows : int, optional

    Returns
    -------
    Path
        The manifest, ``out/manifest.json``. Ids are numbers of rows.
    """
    rows = _Rows(x, block_rows)
    index = index_factory(rows.d, factory, metric)
    nlist = index.nlist if hasattr(index, "nlist") else 1
    index.train(rows.sample(sample_rows or max(65536, 256 * nlist)))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    trained = _write(index, folder / "trained.index")
    each = max(1, shard_rows // rows.block_rows)
    tasks = []
    for number, first in enumerate(range(0, len(rows.blocks), each)):
        tasks.append(
            delayed(_build_shard)(
                str(folder.resolve()),
                trained,
                f"shard{number:05d}.index",
                first * rows.block_rows,
                rows.blocks[first : first + each],
                rows.names[first : first + each],
            )
        )
    manifest = {
        "format": _FORMAT,
        "factory": factory,
        "d": rows.d,
        "metric": metric,
        "ntotal": rows.n,
        "trained_sha256": trained,
        "shards": list(compute(*tasks)),
    }
    path = folder / "manifest.json"
    _write_manifest(manifest, path)
    return path


def _write_manifest(manifest: dict[str, Any], path: Path) -> None:
    partial = path.with_name("manifest.json.partial")
    partial.write_text(json.dumps(manifest, indent=1) + "\n")
    os.replace(partial, path)


def _read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(Path(path).read_text())
    if manifest.get("format") != _FORMAT:
        raise ValueError(
            f"{path}: format {manifest.get('format')}, expected {_FORMAT}"
        )
    return manifest


Found = tuple[NDArray[np.float32], NDArray[np.int64]]


def _search_shard(
    path: str, sha256: str, queries: Any, k: int, nprobe: int
) -> Found:
    index = _load(path, sha256)
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
    return _load(path, sha256).search(
        queries, k, params=SearchParameters(**params)
    )


@functools.lru_cache(maxsize=4)
def _lists_of(
    path: str, sha256: str, shard: int, shards: int
) -> _core.ListShard:
    _check(Path(path), sha256)
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
        traffic.

    Returns
    -------
    D, I : ndarray of shape (n, k)
    """
    parts = _read_manifest(manifest)
    folder = Path(manifest).resolve().parent
    x = _arrays.floats(queries, "queries", parts["d"])
    k = _arrays.count(k, "k")
    if (nprobe is None) == (params is None):
        raise ValueError("nprobe, params: expected one of the two")
    if params is not None:
        if isinstance(params, SearchParameters):
            if params.sel is not None:
                raise TypeError(
                    "params: a selector does not travel, expected a dict "
                    "with sel as ids, a mask or a range"
                )
            params = params._given()
        SearchParameters(**params)  # wrong input is told here
        if "merged" not in parts:
            raise ValueError(
                f"{manifest}: its shards are not merged on disk; "
                "merge(manifest, on_disk=True) does it"
            )
        merged = str(folder / parts["merged"]["file"])
        sha256 = parts["merged"]["sha256"]
        workers = _workers()
        if shards is None:
            shards = max(1, len(workers))
        shards = _arrays.count(shards, "shards")
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
    q = delayed(x)
    nprobe = _arrays.count(nprobe, "nprobe")
    similarity = parts["metric"] == _core.METRIC_INNER_PRODUCT
    found: Found = _tree(
        functools.partial(_best, similarity=similarity),
        [
            delayed(_search_shard)(
                str(folder / s["file"]), s["sha256"], q, k, nprobe
            )
            for s in parts["shards"]
        ],
    ).compute()
    return found


def merge(
    manifest: str | os.PathLike[str],
    *,
    on_disk: bool = False,
    queries: Any = None,
) -> Index:
    """All shards as one index, calibrated.

    Parameters
    ----------
    manifest : str or path
    on_disk : bool
        Vectors go to ``merged.ivfdata`` beside the manifest, and the index to
        ``merged.index``, for `search` with params. Memory O(codes).
    queries : array of shape (n, d), optional
        To calibrate on; vectors of the index if left out.
    """
    parts = _read_manifest(manifest)
    folder = Path(manifest).resolve().parent
    index = _load(
        str(folder / "trained.index"), parts["trained_sha256"], False
    )
    if on_disk:
        paths = [folder / shard["file"] for shard in parts["shards"]]
        for path, shard in zip(paths, parts["shards"], strict=True):
            _check(path, shard["sha256"])
        index._core.merge_ondisk(
            [str(path) for path in paths],
            str(folder / "merged.ivfdata"),
            False,
        )
        if queries is not None:
            index.calibrate(queries)
        parts["merged"] = {
            "file": "merged.index",
            "sha256": _write(index, folder / "merged.index"),
        }
        _write_manifest(parts, Path(manifest))
        return index
    calibrates = index.has_mixture and index.calibrate_on_add
    if calibrates:
        index.calibrate_on_add = False
    for shard in parts["shards"]:
        index.merge_from(
            _load(str(folder / shard["file"]), shard["sha256"], False)
        )
    if calibrates:
        index.calibrate_on_add = True
        index.optimize()
    if queries is not None:
        index.calibrate(queries)
    return index
