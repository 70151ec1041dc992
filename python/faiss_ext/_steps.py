"""Steps that commands of the command line share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from . import _arrays, _core, _files, _sweep
from ._factory import index_factory, read_index, write_index
from ._index import Index
from ._selectors import SearchParameters
from ._terminal import progress

#: Fewer queries calibrate nothing.
LEAST_QUERIES = 20


class Metric(str, Enum):
    """How vectors are compared."""

    l2 = "l2"
    ip = "ip"


def check_out(
    *paths: Path | None, inputs: Iterable[str | Path | None] = ()
) -> None:
    """What cannot be written is said before the work, as is what another
    output or an input would be lost to."""
    taken = {
        os.path.realpath(_files.split_name(given)[0])
        for given in inputs
        if given is not None
    }
    for path in paths:
        if path is None:
            continue
        place = os.path.realpath(path)
        if place in taken:
            raise ValueError(
                f"{path}: an input or another output, expected a file of its "
                "own"
            )
        taken.add(place)
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: its folder is not there")
        if path.is_dir():
            raise IsADirectoryError(f"{path}: a folder, expected a file")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"{path}: its folder cannot be written to")


def check_target(target_recall: float | None) -> None:
    if target_recall is not None:
        SearchParameters(target_recall=target_recall)


def open_index(file: Path) -> Index:
    _files.check_file(file)
    return read_index(file)


def open_rows(
    path: str, d: int | None = None, part: str = "train"
) -> _files.Vectors:
    """Vectors of real numbers, of that many dimensions."""
    vectors = _files.open_vectors(path, part)
    _arrays.matrix(np.empty((0, vectors.d), vectors.dtype), path, d)
    return vectors


def open_queries(path: str, d: int, least: int = 1) -> _files.Vectors:
    vectors = open_rows(path, part="test")
    if vectors.n < least or vectors.d != d:
        raise ValueError(
            f"{path}: {vectors.n} x {vectors.d}, expected {least} or more "
            f"queries of the index's d = {d}"
        )
    return vectors


def read_finite(vectors: _files.Vectors) -> _arrays.Floats:
    """All of them."""
    x = _arrays.floats(vectors.array(), vectors.path)
    _core.check_finite(vectors.path, x)
    return x


def write_file(index: Index, out: Path) -> int:
    """A new file in the place of an old one, or the old one."""
    try:
        write_index(index, out)
    except _core.FaissError as error:
        raise OSError(str(error)) from None
    return out.stat().st_size


def counted(
    vectors: _files.Vectors, advance: Callable[[int], None]
) -> Iterator[Any]:
    at = 0
    for block in vectors.blocks():
        _arrays.check_finite(block, vectors.path, at)
        yield block
        at += len(block)
        advance(len(block))


def train_index(
    factory: str,
    base: _files.Vectors,
    metric: Metric,
    niter: int | None,
    seed: int | None,
    sample: int | None,
    quiet: bool,
) -> Index:
    code = (
        _core.METRIC_L2 if metric is Metric.l2 else _core.METRIC_INNER_PRODUCT
    )
    index = index_factory(base.d, factory, code)
    if index._core.has_lists():
        if niter is not None:
            index.cp.niter = niter
        if seed is not None:
            index.cp.seed = seed
    if index.is_trained:
        return index
    with progress("reading for training", base.n, quiet) as advance:
        blocks = counted(base, advance)
        if sample is None:
            index.train(blocks)
        else:
            index.train(
                _arrays.sample_blocks(
                    blocks,
                    "base",
                    base.d,
                    sample,
                    1234 if seed is None else seed,
                )
            )
    return index


def add_vectors(index: Index, vectors: _files.Vectors, quiet: bool) -> None:
    with progress("adding", vectors.n, quiet) as advance:
        index.add(counted(vectors, advance))


def facts_of(index: Index) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "factory": index.factory_string,
        "ntotal": index.ntotal,
        "d": index.d,
        "metric": "l2" if index.metric_type == _core.METRIC_L2 else "ip",
        "trained": index.is_trained,
        "mixture": index.has_mixture,
    }
    if index._core.has_lists():
        facts.update(
            nlist=index.nlist, nprobe=index.nprobe, code_size=index.code_size
        )
        if index.ntotal:
            sizes = index.list_sizes()
            facts["largest_list"] = int(sizes.max())
            facts["empty_lists"] = int((sizes == 0).sum())
            facts["imbalance"] = float(
                len(sizes) * np.square(sizes / sizes.sum()).sum()
            )
    if index.has_mixture:
        c = index.calibration
        facts.update(
            covariance=index.covariance_type,
            target_recall=index.target_recall,
            calibrated=c.fitted,
        )
        if c.fitted:
            facts.update(
                calibrated_k=c.k,
                calibrated_queries=c.nq,
                calibrated_on_own_vectors=c.own_queries,
            )
    return facts


def true_neighbors(
    groundtruth: str | None,
    base: str | None,
    queries: _files.Vectors,
    k: int,
    index: Index,
) -> np.ndarray[Any, Any]:
    if groundtruth is not None:
        truth = _files.open_vectors(groundtruth, "neighbors").array()
        if truth.dtype.kind not in "iu":
            raise ValueError(
                f"{groundtruth}: {truth.dtype}, expected ids, which are "
                "integers"
            )
        if truth.shape[0] != queries.n or truth.shape[1] < k:
            raise ValueError(
                f"{groundtruth}: shape {truth.shape}, expected {queries.n} "
                f"rows of at least k = {k}"
            )
        return truth[:, :k]
    if base is None:
        raise ValueError(
            "expected --groundtruth, or --base to find the neighbours in"
        )
    rows = open_rows(base, queries.d)
    if rows.n == 0:
        raise ValueError(f"{base}: no vectors, expected those of the index")
    return _sweep.exact_neighbors(
        counted(rows, lambda _: None),
        queries.array(),
        k,
        index.metric_type,
    )
