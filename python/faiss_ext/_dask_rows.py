"""Vectors as blocks that a cluster's workers compute or read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from dask import compute, delayed
from dask.base import get_scheduler
from dask.callbacks import Callback
from numpy.typing import NDArray

from . import _arrays, _files
from ._progress import Bar

#: Values of a block, whose sums are added up before any are merged: Dask's
#: workers give memory back after each (MALLOC_TRIM_THRESHOLD_), and take time
#: to have it again.
BLOCK_VALUES = 1 << 25


class Rows:
    """Vectors as blocks of so many rows that workers compute or read."""

    def __init__(self, x: Any, block_rows: int | None) -> None:
        _arrays.refuse_frames_of_dask(x)
        if hasattr(x, "to_delayed"):
            if x.ndim != 2 or any(np.isnan(x.shape)):
                raise ValueError(
                    f"x: shape {x.shape}, expected two known dimensions "
                    "(compute_chunk_sizes)"
                )
            self.n, self.d = (int(v) for v in x.shape)
            self.dtype = self._read_as(x.dtype)
            block_rows = self._choose(block_rows)
            x = x.map_blocks(_whole, dtype=x.dtype, meta=x._meta)
            x = x.rechunk({0: block_rows, 1: -1})
            self.blocks = list(x.to_delayed().ravel())
            self.names = [f"x, rows from {b}" for b in self._begins()]
            return
        if isinstance(x, (str, os.PathLike)):
            x = [x]
        try:
            # Workers may be in other folders.
            paths = [os.path.abspath(p) for p in x]
        except TypeError:
            raise TypeError(
                f"x: of type {type(x).__name__}, expected a dask array "
                "(dask.array.from_array) or paths of files"
            ) from None
        files = [(path, _files.open_vectors(path)) for path in paths]
        if not files:
            raise ValueError("x: no files")
        self.d = files[0][1].d
        dtype = files[0][1].dtype
        for path, vectors in files:
            if vectors.d != self.d or vectors.dtype != dtype:
                raise ValueError(
                    f"{path}: {vectors.d} columns of {vectors.dtype}, "
                    f"expected {self.d} of {dtype}"
                )
        self.n = sum(v.n for _, v in files)
        self.dtype = self._read_as(dtype)
        block_rows = self._choose(block_rows)
        self.blocks, self.names = [], []
        for begin in self._begins():
            end = min(begin + block_rows, self.n)
            parts, first = [], 0
            for path, vectors in files:
                a, b = max(begin, first), min(end, first + vectors.n)
                if a < b:
                    parts.append((path, a - first, b - first))
                first += vectors.n
            self.blocks.append(Read(tuple(parts)))
            self.names.append(f"{parts[0][0]}, rows from {parts[0][1]}")

    def _read_as(self, dtype: Any) -> np.dtype[Any]:
        """What C++ reads of the blocks; there must be some."""
        if np.dtype(dtype).kind not in "fiub":
            raise TypeError(
                f"x: dtype {dtype}, expected real numbers such as float32"
            )
        if self.n == 0 or self.d == 0:
            raise ValueError(
                f"x: shape {(self.n, self.d)}, expected rows and columns"
            )
        return _arrays.real(np.empty((0, 0), dtype)).dtype

    def _choose(self, block_rows: int | None) -> int:
        if block_rows is None:
            block_rows = max(1024, BLOCK_VALUES // self.d)
        self.block_rows = _arrays.count(block_rows, "block_rows")
        return self.block_rows

    def _begins(self) -> range:
        return range(0, self.n, self.block_rows)

    def sample(self, most: int | None, otherwise: int) -> NDArray[Any]:
        """At most that many rows (sample_rows), evenly spaced; None: as many
        as `otherwise`."""
        if most is not None:
            otherwise = _arrays.count(most, "sample_rows")
        most = min(otherwise, self.n)
        parts = [
            delayed(_spaced, pure=True)(block, begin, self.n, most)
            for begin, block in zip(self._begins(), self.blocks, strict=True)
        ]
        return np.concatenate(compute(*parts))


def _whole(block: Any, block_info: Any = None) -> Any:
    """A block of an array, if it has the rows that the array says: rows are
    numbered by these."""
    begin, end = block_info[0]["array-location"][0]
    if len(block) != end - begin:
        raise ValueError(
            f"x, rows from {begin}: {len(block)}, expected {end - begin} by "
            "the array's chunks"
        )
    if isinstance(block, np.ma.MaskedArray):
        return _arrays.as_array(block, f"x, rows from {begin}")
    return block


@dataclasses.dataclass(frozen=True)
class Read:
    """Rows of files that whoever needs them reads: no task of their own, which
    another worker could be given."""

    parts: tuple[tuple[str, int, int], ...]


Block = NDArray[Any] | Read


def as_block(block: Block) -> NDArray[Any]:
    """Its rows, as C++ reads them."""
    if not isinstance(block, Read):
        return _arrays.real(block)
    rows = []
    for path, a, b in block.parts:
        vectors = _files.open_vectors(path)
        if vectors.n < b:
            raise ValueError(
                f"{path}: {vectors.n} rows, expected {b}: it has shrunk"
            )
        rows.append(vectors.array()[a:b])
    return _arrays.real(rows[0] if len(rows) == 1 else np.concatenate(rows))


def _spaced(block: Block, begin: int, n: int, most: int) -> NDArray[Any]:
    block = as_block(block)
    i = np.arange(begin, begin + len(block))
    return np.asarray(block[(i + 1) * most // n > i * most // n])


def computed(tasks: Sequence[Any], bar: Bar) -> list[Any]:
    """What the tasks give; the bar counts those that are done."""
    client: Any = getattr(get_scheduler(), "__self__", None)
    if not hasattr(client, "gather"):  # in this process
        keys = {task.key for task in tasks}

        def done(key: Any, *_: Any) -> None:
            if key in keys:
                bar.advance()

        with Callback(posttask=done):
            return list(compute(*tasks))
    from distributed import as_completed

    futures = client.compute(list(tasks))
    for _ in as_completed(futures):
        bar.advance()
    return list(client.gather(futures))


def tree(merge: Callable[[Any, Any], Any], leaves: Sequence[Any]) -> Any:
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
