"""How vectors come into an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from . import _arrays, _core
from ._arrays import Floats, Ids
from ._fields import Fields
from ._progress import Bar

#: A product quantizer trains on this many vectors at most, as FAISS's do.
_CODEC_TRAINING = 65536


class Filling(Fields):
    """Training and adding, block by block."""

    __slots__ = ()

    def train(self, x: Any) -> None:
        """Fits the mixture, and what codes the vectors.

        Parameters
        ----------
        x : array of shape (n, d), iterator of such blocks, or Dask array
            At least nlist vectors; 39 a list are good. uint8 and float16 in
            C order (a memmap, too) are read block by block in every
            iteration. What else is not float32 in C order is sampled first,
            ``cp.max_points_per_centroid`` a list (and at least 65,536), with
            ``cp.seed``. What is on a GPU is sampled there. There a mixture is
            trained from C-contiguous float32, float16 and uint8, of which only
            what codecs learn from comes to the CPU; of what else is on a GPU,
            of inner products, and behind PCA or OPQ, the sample does.

        Raises
        ------
        ValueError, TypeError
            For wrong input, with the index as it was, and for an index that
            holds vectors.
        """
        if self.ntotal > 0:
            raise _core.FaissError(
                f"ntotal = {self.ntotal}, expected an empty index: training "
                "again would misplace its vectors; make a new one"
            )
        most = _CODEC_TRAINING
        seed = 1234
        if self._core.has_lists():
            cp = self._core.cp
            most = max(most, cp.max_points_per_centroid * self.nlist)
            seed = cp.seed
        x = _arrays.given_blocks(x)
        if _arrays.is_blocks(x):
            with Bar(self.verbose, None, "reading", "vectors") as bar:
                sample = _arrays.sample_blocks(
                    _counted(x, bar), "x", self.d, most, abs(seed)
                )
            self._core.train(sample)
            return
        rows = None
        if _arrays.on_device(x):
            x, rows = _arrays.sample_rows(x, most, abs(seed))
        if self.has_mixture:
            there = _arrays.readable_on_device(x, self.d)
            if there is not None:
                with _arrays.block_of("x", rows=rows):
                    self._core.train_source(there)
                return
        a = _arrays.matrix(x, "x", self.d)
        if _arrays.is_source(a):
            self._core.train_source(a)
            return
        if rows is None and not _arrays.is_floats(a):
            a, rows = _arrays.sample_rows(a, most, abs(seed))
        with _arrays.block_of("x", rows=rows):
            self._core.train(_arrays.floats(np.asarray(a), "x"))

    def add(self, x: Any) -> None:
        """Adds vectors, with the ids ntotal, ntotal + 1, ...

        Parameters
        ----------
        x : array of shape (n, d), iterator of such blocks, or Dask array
            Of an iterator, of a Dask array and of what is converted block by
            block, the blocks before one that is wrong stay added.
        """
        total = None
        single = False
        x = _arrays.given_blocks(x)
        if _arrays.on_device(x):
            total = len(x)
        elif not _arrays.is_blocks(x):
            x = _arrays.matrix(x, "x", self.d)
            if _arrays.is_source(x):
                self._core.add_source(x)
                return
            total = len(x)
            single = _arrays.is_one_block(x)
        with Bar(self.verbose, total, "adding", "vectors") as bar:

            def add(named: tuple[str, int, Floats]) -> None:
                name, begin, block = named
                before = self.ntotal
                try:
                    with _arrays.block_of(name, begin):
                        self._core.add(block)
                except _core.FaissError as error:
                    if name == "x" or not str(error).startswith(name):
                        raise
                    raise _core.FaissError(
                        f"{error} (ntotal was {before})"
                    ) from None
                bar.advance(len(block))

            self._add(self._blocks(x), add, single)

    def add_with_ids(self, x: Any, ids: Any) -> None:
        """Adds vectors with ids of your own.

        Parameters
        ----------
        x : array of shape (n, d)
        ids : array of int of shape (n,)
        """
        a = _arrays.matrix(x, "x", self.d)
        numbers = _arrays.ids(ids, "ids", len(a))

        def blocks() -> Iterator[tuple[int, Floats, Ids]]:
            for begin, block in _arrays.float_blocks(a):
                yield begin, block, numbers[begin : begin + len(block)]

        with Bar(self.verbose, len(a), "adding", "vectors") as bar:

            def add(numbered: tuple[int, Floats, Ids]) -> None:
                begin, block, of_block = numbered
                with _arrays.block_of("x", begin):
                    self._core.add_with_ids(block, of_block)
                bar.advance(len(block))

            self._add(blocks(), add, _arrays.is_one_block(a))

    def _blocks(self, x: Any) -> Iterator[tuple[str, int, Floats]]:
        """What they are called in errors, their first row there, and
        blocks."""
        if _arrays.on_device(x):
            on_host = _arrays.device_blocks(x, "x", self.d)
            yield from (("x", *block) for block in on_host)
            return
        if not _arrays.is_blocks(x):
            a = _arrays.matrix(x, "x", self.d)
            yield from (("x", *block) for block in _arrays.float_blocks(a))
            return
        total = self.ntotal
        for number, of_x in enumerate(x):
            name = f"x[{number}]"
            try:
                a = _arrays.matrix(of_x, name, self.d)
            except TypeError as error:
                raise TypeError(f"{error} (ntotal was {total})") from None
            except ValueError as error:
                raise ValueError(f"{error} (ntotal was {total})") from None
            total += len(a)
            yield from ((name, *block) for block in _arrays.float_blocks(a))

    def _add(self, blocks: Iterator[Any], add: Any, single: bool) -> None:
        """Calibrates once, after the last block, or the last that could be
        had. Each is added before the next is asked for, which may be in the
        same memory."""
        if single:
            for block in blocks:
                add(block)
            return
        core = self._core
        calibrates = False
        failure: Exception | None = None
        while True:
            try:
                block = next(blocks, None)
            except Exception as error:
                failure = error
                break
            if block is None:
                break
            calibrates = core.has_mixture() and core.calibrate_on_add
            if not calibrates:
                add(block)
                continue
            core.calibrate_on_add = False
            try:
                add(block)
            finally:
                core.calibrate_on_add = True
        if calibrates and core.maintenance_due():
            core.maintain()
        if failure is not None:
            raise failure


def _counted(blocks: Iterable[Any], bar: Bar) -> Iterator[Any]:
    for block in blocks:
        yield block
        bar.advance(len(block))
