"""The index."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import (
    Any,
    Generic,
    NamedTuple,
    SupportsIndex,
    TypeVar,
    overload,
)

import numpy as np
from numpy.typing import NDArray

from . import _arrays, _core
from ._arrays import Floats, Ids
from ._core import Calibration, ClusteringParameters
from ._progress import Bar
from ._selectors import parameters, selector

#: A product quantizer trains on this many vectors at most, as FAISS's do.
_CODEC_TRAINING = 65536
#: FAISS keeps dimensions in 32 bits, and the bytes of a vector, too.
_MOST_DIMENSIONS = (1 << 29) - 1


class Mixture(NamedTuple):
    """A fitted mixture.

    Parameters
    ----------
    means : ndarray of shape (nlist, d)
    variances : ndarray
        Shape (nlist,) for ``"spherical"``, (nlist, d) for ``"diag"`` and ()
        for ``"tied_spherical"``; matrices for ``"full"`` (nlist, d, d) and
        ``"tied"`` (d, d).
    weights : ndarray of shape (nlist,)
    covariance_type : str
    """

    means: Floats
    variances: Floats
    weights: Floats
    covariance_type: str


T = TypeVar("T")


class _Field(Generic[T]):
    """A field of the C++ index."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, index: None, owner: Any = None) -> _Field[T]: ...
    @overload
    def __get__(self, index: Index, owner: Any = None) -> T: ...
    def __get__(self, index: Any, owner: Any = None) -> Any:
        if index is None:
            return self
        try:
            return getattr(index._core, self.name)
        except _core.FaissError as error:
            # hasattr, copy and pickle ask for what may not be there.
            raise AttributeError(str(error)) from None

    def __set__(self, index: Index, value: T) -> None:
        try:
            setattr(index._core, self.name, value)
        except TypeError:
            raise TypeError(
                f"{self.name} = {value!r}: a {type(value).__name__} is not "
                "what it can be"
            ) from None
        except _core.FaissError as error:
            if self.name in str(error):
                raise
            raise _core.FaissError(f"{self.name}: {error}") from None


class Index:
    """A FAISS index, made by `index_factory`, `read_index` or `from_faiss`.

    It has the methods of faiss's own wrappers, and takes vectors as numpy
    arrays of any real dtype and order, np.memmap, or anything that speaks
    DLPack. float32 in C order is used without a copy; the rest is converted
    block by block.

    Searches may run in several threads at once; adding may not beside them.
    Other Python threads run while a call does. Ctrl-C raises
    KeyboardInterrupt.

    Errors are ValueError (`FaissError` is one) or TypeError, and name the
    argument, its value and what was expected.

    Parameters
    ----------
    core : object
        Of another Index.
    """

    __slots__ = ("_core", "__weakref__")

    d = _Field[int]("Dimension of the vectors.")
    ntotal = _Field[int]("Vectors in it.")
    is_trained = _Field[bool]("Whether `add` may be called.")
    metric_type = _Field[int]("METRIC_L2 or METRIC_INNER_PRODUCT.")
    verbose = _Field[bool](
        "Prints what it does; for what comes in blocks a bar of tqdm's, where "
        "it is installed."
    )
    nlist = _Field[int]("Lists, or components.")
    code_size = _Field[int]("Bytes of a vector.")
    cp = _Field[ClusteringParameters](
        "How it is trained: niter, seed, max_points_per_centroid, ..."
    )
    nprobe = _Field[int]("A search costs as much as so many average lists.")
    k_factor = _Field[float](
        "Of an index with RFlat or Refine behind it: k * k_factor vectors are "
        "compared again. At least 1, which only sorts what was found."
    )
    max_codes = _Field[int](
        "The most distances a query computes; 0 sets no limit."
    )
    target_recall = _Field[float](
        "In [0, 1). Above 0: the cheapest setting that reached this recall "
        "when calibrated; nprobe is not used then. Of compressed vectors it "
        "is the share of what comparing all of them finds."
    )
    probe_mass = _Field[float](
        "In (0, 1]. Below 1: a query stops once this share of its neighbours "
        "is expected to be found."
    )
    probe_order = _Field[str](
        "What comes first in a search, see `SearchParameters`."
    )
    covariance_type = _Field[str](
        '"spherical", "diag" or "tied_spherical"; set it before training.'
    )
    backend = _Field[str]('What trained it, "cpu" or "cuda".')
    cells_per_list = _Field[int](
        "Cells in each list; 0: from the list sizes, 1: plain IVF."
    )
    code_bits = _Field[int](
        "Bits a dimension of the vectors' codes: 1, 2, 4, or 0 for what suits "
        "the dimension; set it before adding."
    )
    max_assign = _Field[int]("Lists that a vector may be in.")
    assign_ratio = _Field[float]("How much farther a copy's list may be.")
    assign_threshold = _Field[float](
        "Above 0: copies go to components of that responsibility."
    )
    calibration = _Field[Calibration](
        "What was learnt from known neighbours, a copy."
    )
    direct_map = _Field[str]("The type of map, see `set_direct_map`.")
    calibrate_on_add = _Field[bool](
        "Calibrates again whenever the index has grown by 1.3."
    )

    def __init__(self, core: _core.Index) -> None:
        if not isinstance(core, _core.Index):
            raise TypeError(
                "Index: made by index_factory, read_index or from_faiss"
            )
        self._core = core

    def __len__(self) -> int:
        return self.ntotal

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        name = self._core.factory() or "unnamed"
        text = f'faiss_ext.Index "{name}", {self.ntotal:,} x {self.d}'
        if self.metric_type == _core.METRIC_INNER_PRODUCT:
            text += ", inner product"
        if not self.is_trained:
            text += ", not trained"
        if self._core.has_mixture() and self.target_recall > 0:
            text += f", target_recall={self.target_recall:g}"
        elif self._core.has_lists():
            text += f", nprobe={self.nprobe}"
        return f"<{text}>"

    def __reduce__(self) -> Any:
        return deserialize_index, (_core.serialize(self._core),)

    def __copy__(self) -> Index:
        return Index(self._core.clone())

    def __deepcopy__(self, memo: Any) -> Index:
        return Index(self._core.clone())

    @property
    def has_mixture(self) -> bool:
        """Whether there is a GMM index inside."""
        return self._core.has_mixture()

    @property
    def factory_string(self) -> str:
        """The string that `index_factory` makes such an index from, or ""."""
        return self._core.factory()

    # Training and adding

    def train(self, x: Any) -> None:
        """Fits the mixture, and what codes the vectors.

        Parameters
        ----------
        x : array of shape (n, d), or iterator of such blocks
            At least nlist vectors; 39 a list are good. uint8 and float16 in
            C order (a memmap, too) are read block by block in every
            iteration. What else is not float32 in C order is sampled first,
            ``cp.max_points_per_centroid`` a list (and at least 65,536), with
            ``cp.seed``; what is on a GPU is sampled there, and only the sample
            comes to the CPU.

        Raises
        ------
        ValueError, TypeError
            For wrong input, with the index as it was.
        """
        most = _CODEC_TRAINING
        seed = 1234
        if self._core.has_lists():
            cp = self._core.cp
            most = max(most, cp.max_points_per_centroid * self.nlist)
            seed = cp.seed
        if _arrays.is_blocks(x):
            with Bar(self.verbose, None, "reading", "vectors") as bar:
                sample = _arrays.sample_blocks(
                    _counted(x, bar), "x", self.d, most, abs(seed)
                )
            self._core.train(sample)
            return
        if _arrays.on_device(x) and len(x) > most:
            x = _arrays.sample_rows(x, most, abs(seed))
        a = _arrays.matrix(x, "x", self.d)
        if _arrays.is_source(a):
            self._core.train_source(a)
            return
        if not (a.dtype == np.float32 and a.flags.c_contiguous):
            a = _arrays.sample_rows(a, most, abs(seed))
        self._core.train(_arrays.floats(np.asarray(a), "x"))

    def add(self, x: Any) -> None:
        """Adds vectors, with the ids ntotal, ntotal + 1, ...

        Parameters
        ----------
        x : array of shape (n, d), or iterator of such blocks
            Of an iterator or of what is converted block by block, the blocks
            before one that is wrong stay added.
        """
        total = None
        if _arrays.on_device(x):
            total = len(x)
        elif not _arrays.is_blocks(x):
            x = _arrays.matrix(x, "x", self.d)
            if _arrays.is_source(x):
                self._core.add_source(x)
                return
            total = len(x)
        with Bar(self.verbose, total, "adding", "vectors") as bar:

            def add(named: tuple[str, Floats]) -> None:
                name, block = named
                before = self.ntotal
                try:
                    self._core.add(block)
                except _core.FaissError as error:
                    if name == "x" or not str(error).startswith("x:"):
                        raise
                    raise _core.FaissError(
                        f"{name}{str(error)[1:]} (ntotal was {before})"
                    ) from None
                bar.advance(len(block))

            self._add(self._blocks(x), add)

    def add_with_ids(self, x: Any, ids: Any) -> None:
        """Adds vectors with ids of your own.

        Parameters
        ----------
        x : array of shape (n, d)
        ids : array of int of shape (n,)
        """
        a = _arrays.matrix(x, "x", self.d)
        numbers = _arrays.ids(ids, "ids", len(a))

        def blocks() -> Iterator[tuple[Floats, Ids]]:
            for begin, block in _arrays.float_blocks(a):
                yield block, numbers[begin : begin + len(block)]

        with Bar(self.verbose, len(a), "adding", "vectors") as bar:

            def add(pair: tuple[Floats, Ids]) -> None:
                self._core.add_with_ids(*pair)
                bar.advance(len(pair[0]))

            self._add(blocks(), add)

    def _blocks(self, x: Any) -> Iterator[tuple[str, Floats]]:
        """What they are called in errors, and blocks."""
        if _arrays.on_device(x):
            on_host = _arrays.device_blocks(x, "x", self.d)
            yield from (("x", block) for block in on_host)
            return
        if not _arrays.is_blocks(x):
            a = _arrays.matrix(x, "x", self.d)
            yield from (("x", block) for _, block in _arrays.float_blocks(a))
            return
        for number, of_x in enumerate(x):
            name = f"x[{number}]"
            a = _arrays.matrix(of_x, name, self.d)
            yield from ((name, block) for _, block in _arrays.float_blocks(a))

    def _add(self, blocks: Iterator[Any], add: Any) -> None:
        """Calibrates once, after the last block."""
        core = self._core
        previous = next(blocks, None)
        following = next(blocks, None) if previous is not None else None
        if previous is None:
            return
        if following is None:
            add(previous)
            return
        calibrates = core.has_mixture() and core.calibrate_on_add
        if calibrates:
            core.calibrate_on_add = False
        try:
            while following is not None:
                add(previous)
                previous, following = following, next(blocks, None)
        finally:
            if calibrates:
                core.calibrate_on_add = True
        add(previous)
        if calibrates and core.maintenance_due():
            core.maintain()

    # Searching

    def search(
        self,
        x: Any,
        k: SupportsIndex,
        *,
        params: Any = None,
        D: Floats | None = None,
        I: Ids | None = None,  # noqa: E741 (faiss's name)
    ) -> tuple[Floats, Ids]:
        """The k nearest vectors of each query.

        Parameters
        ----------
        x : array of shape (n, d)
        k : int
        params : SearchParameters, optional
            For this call. A faiss.SearchParametersIVF is read, too.
        D, I : ndarray of shape (n, k), optional
            float32 and int64, written instead of new ones.

        Returns
        -------
        D : ndarray of shape (n, k)
            Squared distances, smallest first; inner products, largest first.
        I : ndarray of shape (n, k)
            Ids; -1 where there are fewer than k.
        """
        core = self._core
        x = _arrays.floats(x, "x")
        if type(k) is not int or k < 1:
            k = _arrays.count(k, "k")
        shape = (x.shape[0], k)
        distances = _arrays.out(D, "D", shape, np.float32)
        labels = _arrays.out(I, "I", shape, np.int64)
        if params is not None:
            params = parameters(params)
        core.search(x, distances, labels, params)
        return distances, labels

    def range_search(
        self, x: Any, thresh: float, *, params: Any = None
    ) -> tuple[Ids, Floats, Ids]:
        """All vectors within a squared distance, or above an inner product.

        Parameters
        ----------
        x : array of shape (n, d)
        thresh : float
        params : SearchParameters, optional

        Returns
        -------
        lims : ndarray of shape (n + 1,)
            Query i found ``D[lims[i]:lims[i + 1]]``.
        D, I : ndarray of shape (lims[-1],)
        """
        try:
            thresh = float(thresh)
        except (TypeError, ValueError):
            raise TypeError(
                f"thresh = {thresh!r}, expected a number"
            ) from None
        return self._core.range_search(
            _arrays.floats(x, "x"), thresh, parameters(params)
        )

    def search_and_reconstruct(
        self, x: Any, k: SupportsIndex, *, params: Any = None
    ) -> tuple[Floats, Ids, Floats]:
        """As `search`, and the vectors found.

        Parameters
        ----------
        x : array of shape (n, d)
        k : int
        params : SearchParameters, optional

        Returns
        -------
        D, I : ndarray of shape (n, k)
        R : ndarray of shape (n, k, d)
        """
        x = _arrays.floats(x, "x")
        k = _arrays.count(k, "k")
        distances = np.empty((len(x), k), np.float32)
        labels = np.empty((len(x), k), np.int64)
        vectors = np.empty((len(x), k, self.d), np.float32)
        self._core.search_and_reconstruct(
            x, distances, labels, vectors, parameters(params)
        )
        return distances, labels, vectors

    def assign(self, x: Any, k: SupportsIndex = 1) -> Ids:
        """The ids of the k nearest vectors of each query.

        Parameters
        ----------
        x : array of shape (n, d)
        k : int

        Returns
        -------
        ndarray of int of shape (n, k)
            Of shape (n,) for k = 1.
        """
        labels = self.search(x, k)[1]
        return labels[:, 0] if k == 1 else labels

    # Changing and looking up

    def remove_ids(self, ids: Any) -> int:
        """Removes vectors.

        Parameters
        ----------
        ids : IDSelector, range, array of int or array of bool
            A boolean array is a mask by id.

        Returns
        -------
        int
            How many were removed.
        """
        sel = selector(ids, "ids")
        if sel is None:
            raise TypeError("ids: None, expected ids or a selector")
        return self._core.remove_ids(sel)

    def update_vectors(self, ids: Any, x: Any) -> None:
        """Replaces vectors; needs `set_direct_map`.

        Parameters
        ----------
        ids : array of int of shape (n,)
        x : array of shape (n, d)
        """
        x = _arrays.floats(x, "x", self.d)
        self._core.update_vectors(_arrays.ids(ids, "ids", len(x)), x)

    def set_direct_map(self, type: str) -> None:
        """Keeps where each id is, for `reconstruct` and `update_vectors`.

        Parameters
        ----------
        type : {"none", "array", "hashtable"}
            An array is for the ids 0, 1, 2, ... and does not let vectors be
            removed.
        """
        self._core.set_direct_map(type)

    def make_direct_map(self, on: bool = True) -> None:
        """``set_direct_map("array")``, or ``"none"``, as faiss names it.

        Parameters
        ----------
        on : bool
        """
        self.set_direct_map("array" if on else "none")

    def reconstruct(self, key: int, x: Floats | None = None) -> Floats:
        """The vector with that id, decoded where it is coded.

        Parameters
        ----------
        key : int
        x : ndarray of float32 of shape (d,), optional
            Written instead of a new one.

        Returns
        -------
        ndarray of shape (d,)

        Raises
        ------
        ValueError
            For an id that is not there, or without a direct map.
        """
        out = _arrays.out(x, "x", (self.d,), np.float32)
        ids = _arrays.ids([_arrays.count(key, "key", -(1 << 63))], "key")
        self._core.reconstruct_batch(ids, out.reshape(1, -1))
        return out

    def reconstruct_n(
        self, n0: int = 0, ni: int = -1, x: Floats | None = None
    ) -> Floats:
        """The vectors with ids n0 to n0 + ni - 1.

        Parameters
        ----------
        n0 : int
        ni : int
            -1: to the last.
        x : ndarray of float32 of shape (ni, d), optional
            Written instead of a new one.

        Returns
        -------
        ndarray of shape (ni, d)

        Raises
        ------
        ValueError
            For an id that is not there.
        """
        if ni == -1:
            ni = self.ntotal - n0
        ni = _arrays.count(ni, "ni", 0)
        out = _arrays.out(x, "x", (ni, self.d), np.float32)
        self._core.reconstruct_n(n0, out)
        return out

    def reconstruct_batch(self, key: Any, x: Floats | None = None) -> Floats:
        """The vectors with those ids.

        Parameters
        ----------
        key : array of int of shape (n,)
        x : ndarray of float32 of shape (n, d), optional
            Written instead of a new one.

        Returns
        -------
        ndarray of shape (n, d)
        """
        ids = _arrays.ids(key, "key")
        out = _arrays.out(x, "x", (len(ids), self.d), np.float32)
        self._core.reconstruct_batch(ids, out)
        return out

    def merge_from(self, other: Index, add_id: int = 0) -> None:
        """Moves the vectors of `other` here, with `add_id` added to their ids.

        Parameters
        ----------
        other : Index
            A copy of the same trained index; it is empty afterwards.
        add_id : int
        """
        if not isinstance(other, Index):
            raise TypeError(
                f"other: a {type(other).__name__}, expected a faiss_ext.Index"
            )
        self._core.merge_from(other._core, add_id)

    def reset(self) -> None:
        """Removes all vectors; what was trained stays."""
        self._core.reset()

    # What the mixture adds

    def calibrate(
        self, queries: Any = None, k: int = 10, nq: int = 500
    ) -> None:
        """Fits order and stop of searches to queries, for `target_recall`.

        Parameters
        ----------
        queries : array of shape (n, d), optional
            Queries like those to come; a hundred are few, 500 are good. They
            are kept for when the index grows. None: `nq` vectors of the index,
            as if they and their nearest were not in it.
        k : int
            Neighbours that are searched for.
        nq : int
            How many vectors of the index, if there are no queries.
        """
        k = _arrays.count(k, "k")
        if queries is None:
            self._core.calibrate_on_own(_arrays.count(nq, "nq", 20), k)
            return
        self._core.calibrate(_arrays.floats(queries, "queries", self.d), k)

    def optimize(self) -> None:
        """Fits the cells anew to what the index holds, and calibrates."""
        self._core.optimize()

    @property
    def maintenance_due(self) -> bool:
        """Whether the index has grown so much that `maintain` would help."""
        return self._core.maintenance_due()

    def maintain(self) -> None:
        """Fits what has outgrown its cells anew, and calibrates if it is due.

        Small additions leave this to you: none takes longer than its vectors.
        """
        self._core.maintain()

    def mixture(self) -> Mixture:
        """The fitted mixture.

        Returns
        -------
        Mixture
            A copy.
        """
        return Mixture(*self._core.mixture())

    def list_sizes(self) -> Ids:
        """Vectors in each list.

        Returns
        -------
        ndarray of int of shape (nlist,)
        """
        return self._core.list_sizes()

    def set_parameters(self, description: str) -> None:
        """Sets parameters of searches by a string.

        Parameters
        ----------
        description : str
            ``"nprobe=16,probe_mass=0.9"``
        """
        self._core.set_parameters(description)

    # Beside faiss

    def to_faiss(self, faiss: Any = None) -> Any:
        """The same vectors and ids as an index of faiss's own, an IVF index
        over the mixture's means.

        Parameters
        ----------
        faiss : module, optional
            The faiss module to make it of; ``import faiss`` if left out.

        Returns
        -------
        faiss.Index
            A copy, without the mixture.
        """
        if faiss is None:
            faiss = importlib.import_module("faiss")
        return faiss.deserialize_index(_core.serialize_stock(self._core))


def _counted(blocks: Iterable[Any], bar: Bar) -> Iterator[Any]:
    for block in blocks:
        yield block
        bar.advance(len(block))


def index_factory(
    d: int, description: str, metric: int = _core.METRIC_L2
) -> Index:
    """An index by FAISS's string, with ``GMM1024`` where ``IVF1024`` stands.

    Parameters
    ----------
    d : int
        Dimension of the vectors.
    description : str
        ``"GMM1024,Flat"``, ``"OPQ16_64,GMM1024,PQ16"``,
        ``"IDMap,GMM256,Flat"``; without GMM it is FAISS's own.
    metric : int
        METRIC_L2 or METRIC_INNER_PRODUCT.

    Returns
    -------
    Index
        Not trained.

    Raises
    ------
    ValueError
        Naming the part of the string that is not understood.
    """
    d = _arrays.count(d, "d")
    if d > _MOST_DIMENSIONS:
        raise ValueError(f"d = {d}, expected at most {_MOST_DIMENSIONS}")
    if not isinstance(description, str):
        raise TypeError(f"description = {description!r}, expected a string")
    return Index(
        _core.index_factory(d, description, _arrays.count(metric, "metric", 0))
    )


def write_index(index: Index, path: str | os.PathLike[str]) -> None:
    """Writes a file that faiss opens, too (without the mixture).

    Parameters
    ----------
    index : Index
    path : str or path
        The old file or the new one is there, whatever happens.
    """
    _core.write_index(_core_of(index), os.fspath(path))


def read_index(path: str | os.PathLike[str], io_flags: int = 0) -> Index:
    """Reads a file of `write_index`, or of faiss.

    Parameters
    ----------
    path : str or path
    io_flags : int
        IO_FLAG_MMAP leaves lists and codes in the file, which must not be
        cut meanwhile.

    Returns
    -------
    Index

    Raises
    ------
    ValueError
        For a file that is truncated, damaged or foreign.
    """
    return Index(_core.read_index(os.fspath(path), io_flags))


def serialize_index(index: Index) -> NDArray[np.uint8]:
    """The bytes of `write_index`.

    Parameters
    ----------
    index : Index

    Returns
    -------
    ndarray of uint8
    """
    return _core.serialize(_core_of(index))


def deserialize_index(data: Any) -> Index:
    """The index in bytes of `serialize_index`, or of faiss's.

    Parameters
    ----------
    data : ndarray of uint8, or bytes

    Returns
    -------
    Index
    """
    if not isinstance(data, np.ndarray):
        data = np.frombuffer(data, dtype=np.uint8)
    if data.dtype != np.uint8 or data.ndim != 1:
        raise TypeError(
            f"data: dtype {data.dtype}, shape {data.shape}, expected bytes"
        )
    return Index(_core.deserialize(np.ascontiguousarray(data)))


def clone_index(index: Index) -> Index:
    """A copy.

    Parameters
    ----------
    index : Index

    Returns
    -------
    Index
    """
    return Index(_core_of(index).clone())


def _core_of(index: Index) -> _core.Index:
    if not isinstance(index, Index):
        raise TypeError(
            f"index: a {type(index).__name__}, expected a faiss_ext.Index"
        )
    return index._core


def from_faiss(index: Any) -> Index:
    """An index of a faiss module as one of ours: a copy, by its bytes.

    Parameters
    ----------
    index : faiss.Index
        Of any faiss module that serialises (1.7.3 to the newest).

    Returns
    -------
    Index

    Raises
    ------
    ValueError
        For a type that the FAISS inside does not read, naming it.
    """
    module = sys.modules.get(type(index).__module__.split(".")[0])
    serialize = getattr(module, "serialize_index", None)
    if serialize is None or isinstance(index, Index):
        raise TypeError(
            f"index: a {type(index).__name__}, expected an index of faiss"
        )
    data = serialize(index)
    try:
        return deserialize_index(data)
    except (_core.FaissError, RuntimeError) as error:
        raise ValueError(
            f"index: a faiss.{type(index).__name__}, which FAISS "
            f"{_core.faiss_version} does not read ({error})"
        ) from None


def swap_to_gmm(index: Any, covariance_type: str = "spherical") -> Index:
    """An IVF index in, the same vectors and ids under a mixture out.

    Parameters
    ----------
    index : faiss.Index or Index
        Trained and filled: IndexIVFFlat, IndexIVFPQ or
        IndexIVFScalarQuantizer, alone or within IndexPreTransform, IndexIDMap
        or IndexRefine. It stays as it is.
    covariance_type : {"spherical", "diag", "tied_spherical"}

    Returns
    -------
    Index
        Calibrated on vectors of its own; set `target_recall` or `nprobe`.
    """
    if isinstance(index, Index):
        out = clone_index(index)
    else:
        out = from_faiss(index)
    try:
        _core.swap_to_gmm(out._core, covariance_type)
    except _core.FaissError as error:
        what = out.factory_string or type(index).__name__
        raise _core.FaissError(f"{error} (index: {what})") from None
    return out
