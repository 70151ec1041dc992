"""The index."""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from . import _arrays, _core
from ._arrays import Floats, Ids
from ._errors import named
from ._filling import Filling
from ._selectors import parameters, selector


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


class Index(Filling):
    """A FAISS index, made by `index_factory`, `read_index` or `from_faiss`.

    Its methods have the names of faiss's and take their arguments in faiss's
    order; it is no faiss.Index. Vectors are numpy arrays of any real dtype
    and order, np.memmap, or anything that speaks DLPack. float32 in C order is
    used without a copy; the rest is converted block by block.

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

    __slots__ = ()

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
    def factory_string(self) -> str:
        """The string that `index_factory` makes such an index from, or ""."""
        return self._core.factory()

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
        if type(k) is not int or not 0 < k < 1 << 31:
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
        numbers = _arrays.ids(ids, "ids", len(x))
        with named({"^v: ": "x: ", r"^idx\[": "ids["}):
            self._core.update_vectors(numbers, x)

    def set_direct_map(self, type: str) -> None:
        """Keeps where each id is, for `reconstruct` and `update_vectors`.

        Parameters
        ----------
        type : {"none", "array", "hashtable"}
            An array is for the ids 0, 1, 2, ... and does not let vectors be
            removed.
        """
        self._core.set_direct_map(
            _arrays.choice(type, "type", ("none", "array", "hashtable"))
        )

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
        ids = _arrays.ids([_arrays.count(key, "key", None)], "key")
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
        n0 = _arrays.count(n0, "n0", None)
        if ni == -1:
            ni = max(0, self.ntotal - n0)
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

        Of IVF indexes, alone or behind the same transformations; other
        wrappers are refused.

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
        self._core.merge_from(
            other._core, _arrays.count(add_id, "add_id", None)
        )

    def reset(self) -> None:
        """Removes all vectors; what was trained stays."""
        self._core.reset()

    # What the mixture adds

    def calibrate(
        self, queries: Any = None, k: int = 10, nq: int = 500
    ) -> None:
        """Measures what searches find and cost, for `target_recall`.

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
        x = _arrays.floats(queries, "queries", self.d)
        with named({"^xq: ": "queries: ", r"^nq = (\d+)": r"queries: \1"}):
            self._core.calibrate(x, k)

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
        self._core.set_parameters(_arrays.text(description, "description"))

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
        if not hasattr(faiss, "deserialize_index"):
            raise TypeError(f"faiss = {faiss!r}, expected the module faiss")
        return faiss.deserialize_index(_core.serialize_stock(self._core))


def core_of(index: Index) -> _core.Index:
    if not isinstance(index, Index):
        raise TypeError(
            f"index: a {type(index).__name__}, expected a faiss_ext.Index"
        )
    return index._core


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
        try:
            data = np.frombuffer(data, dtype=np.uint8)
        except TypeError:
            raise TypeError(
                f"data: a {type(data).__name__}, expected bytes"
            ) from None
    if data.dtype != np.uint8 or data.ndim != 1:
        raise TypeError(
            f"data: dtype {data.dtype}, shape {data.shape}, expected bytes"
        )
    try:
        return Index(_core.deserialize(np.ascontiguousarray(data)))
    except _core.FaissError as error:
        if not str(error).startswith("read error"):
            raise
        raise _core.FaissError(
            f"data: {len(data)} bytes, expected more of an index"
        ) from None
