"""Indexes from strings, files, bytes and faiss's own."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _arrays, _core
from ._index import Index, core_of, deserialize_index

#: FAISS keeps dimensions in 32 bits, and the bytes of a vector, too.
_MOST_DIMENSIONS = (1 << 29) - 1
_INT_MAX = (1 << 31) - 1


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
    d = _arrays.count(d, "d", most=_MOST_DIMENSIONS)
    description = _arrays.text(description, "description")
    metric = _arrays.count(metric, "metric", 0, _INT_MAX)
    try:
        return Index(_core.index_factory(d, description, metric))
    except _core.FaissError as error:
        if description in str(error) or "index_factory:" in str(error):
            raise
        # FAISS's own say what is wrong, and not with what.
        raise _core.FaissError(
            f'description = "{description}" of d = {d}: {error}'
        ) from None


def _path(path: Any) -> str:
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise TypeError(
            f"path = {path!r}, expected a string or a path"
        ) from None
    if "\0" in text:
        raise ValueError(f"path = {text!r}, expected no zero byte")
    return text


def write_index(index: Index, path: str | os.PathLike[str]) -> None:
    """Writes a file that faiss opens, too (without the mixture).

    Parameters
    ----------
    index : Index
    path : str or path
        The old file or the new one is there, whatever happens.
    """
    _core.write_index(core_of(index), _path(path))


def read_index(path: str | os.PathLike[str], io_flags: int = 0) -> Index:
    """Reads a file of `write_index`, or of faiss.

    Parameters
    ----------
    path : str or path
    io_flags : int
        IO_FLAG_MMAP leaves lists and codes in the file, which must not be
        cut meanwhile; of lists that are on disk, IO_FLAG_ONDISK_SAME_DIR
        finds their file beside this one, IO_FLAG_READ_ONLY leaves it as it is.

    Returns
    -------
    Index

    Raises
    ------
    ValueError
        For a file that is truncated, damaged or foreign.
    """
    path = _path(path)
    io_flags = _arrays.count(io_flags, "io_flags", 0, _INT_MAX)
    try:
        return Index(_core.read_index(path, io_flags))
    except _core.FaissError as error:
        if os.path.isdir(path):
            raise IsADirectoryError(
                f"{path}: a folder, expected a file"
            ) from None
        if str(error).startswith("read error"):
            size = os.path.getsize(path)
            raise _core.FaissError(
                f"{path}: {size} bytes, expected more of an index"
            ) from None
        if path in str(error):
            raise
        raise _core.FaissError(f"{path}: {error}") from None


def serialize_index(index: Index) -> NDArray[np.uint8]:
    """The bytes of `write_index`.

    Parameters
    ----------
    index : Index

    Returns
    -------
    ndarray of uint8
    """
    return _core.serialize(core_of(index))


def clone_index(index: Index) -> Index:
    """A copy.

    Parameters
    ----------
    index : Index

    Returns
    -------
    Index
    """
    return Index(core_of(index).clone())


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
        For a type that the FAISS inside does not read, or that the module
        does not serialise (IndexShards, IndexBinaryIVF), naming it.
    """
    module = sys.modules.get(type(index).__module__.split(".")[0])
    serialize = getattr(module, "serialize_index", None)
    if serialize is None or isinstance(index, Index):
        raise TypeError(
            f"index: a {type(index).__name__}, expected an index of faiss"
        )
    try:
        data = serialize(index)
    except (TypeError, RuntimeError) as error:
        # Without the place in FAISS's sources.
        reason = re.sub(r"^Error in .* at \S+: ", "", str(error).strip())
        reason = reason.split("\n")[0]
        raise ValueError(
            f"index: a faiss.{type(index).__name__}, which its faiss does not "
            f"serialise as an Index ({reason})"
        ) from None
    try:
        return deserialize_index(data)
    except (_core.FaissError, RuntimeError) as error:
        raise ValueError(
            f"index: a faiss.{type(index).__name__}, which FAISS "
            f"{_core.faiss_version} does not read ({error})"
        ) from None


def swap_to_gmm(
    index: Any,
    covariance_type: str = "spherical",
    *,
    keep_centroids: bool = False,
) -> Index:
    """An IVF index in, the same vectors and ids under a mixture out.

    Parameters
    ----------
    index : faiss.Index or Index
        Trained and filled: IndexIVFFlat, IndexIVFPQ or
        IndexIVFScalarQuantizer, alone or within IndexPreTransform, IndexIDMap
        or IndexRefine. It stays as it is.
    covariance_type : {"spherical", "diag", "tied_spherical"}
    keep_centroids : bool
        The index's centroids are the means; variances and weights are fitted.

    Returns
    -------
    Index
        Calibrated on vectors of its own; set `target_recall` or `nprobe`.
    """
    _arrays.choice(
        covariance_type,
        "covariance_type",
        ("spherical", "diag", "tied_spherical"),
    )
    keep_centroids = _arrays.flag(keep_centroids, "keep_centroids")
    if isinstance(index, Index):
        out = deserialize_index(serialize_index(index))
    else:
        out = from_faiss(index)
    what = out.factory_string or type(index).__name__
    try:
        _core.swap_to_gmm(out._core, covariance_type, keep_centroids)
    except _core.FaissError as error:
        raise _core.FaissError(f"{error} (index: {what})") from None
    return out
