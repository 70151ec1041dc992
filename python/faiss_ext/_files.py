"""Files of vectors, read in blocks."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

#: Rows that are read at once.
BLOCK_ROWS = 32768

ENDINGS = (
    ".fbin",
    ".u8bin",
    ".i8bin",
    ".ibin",
    ".fvecs",
    ".bvecs",
    ".ivecs",
    ".npy",
    ".hdf5",
    ".h5",
    ".parquet",
)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """What a library finds wrong with a file in one line that names it. A
    header of .npy is read as Python, and a link of HDF5 is a key: errors are
    of any type."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: {reason}") from None


class Vectors:
    """Vectors of a file, shape (n, d); memory is one block.

    Attributes
    ----------
    n, d : int
    dtype : dtype
    path : str
    """

    def __init__(self, path: str, n: int, d: int, dtype: Any) -> None:
        self.path = path
        self.n = n
        self.d = d
        self.dtype = np.dtype(dtype)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[NDArray[Any]]:
        """All rows, in order."""
        raise NotImplementedError

    def array(self) -> NDArray[Any]:
        """All rows as one array; mapped where the file allows it."""
        parts = list(self.blocks())
        empty = np.empty((0, self.d), self.dtype)
        return np.concatenate(parts) if parts else empty


class _Mapped(Vectors):
    """Rows in a mapped file, whatever lies between them."""

    def __init__(self, path: str, rows: NDArray[Any]) -> None:
        super().__init__(path, rows.shape[0], rows.shape[1], rows.dtype)
        self._rows = rows

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[NDArray[Any]]:
        for begin in range(0, self.n, rows):
            yield self._rows[begin : begin + rows]

    def array(self) -> NDArray[Any]:
        return self._rows


class _Hdf5(Vectors):
    def __init__(self, path: str, name: str) -> None:
        import h5py

        with _naming(path):
            self._file = h5py.File(path, "r")
            there = sorted(self._file)
            found = name in self._file
        if not found:
            raise ValueError(
                f"{path}: no data set {name!r}, expected one of {there}"
            )
        with _naming(path):
            self._data = self._file[name]
            shape = getattr(self._data, "shape", None)  # a group has none
            dtype = getattr(self._data, "dtype", None)
        if shape is None or len(shape) != 2:
            raise ValueError(
                f"{path}: {name!r} has shape {shape}, expected two dimensions"
            )
        n, d = shape
        super().__init__(path, n, d, dtype)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[NDArray[Any]]:
        for begin in range(0, self.n, rows):
            with _naming(self.path):
                block = self._data[begin : begin + rows]
            yield block


def _is_vector(type_: Any) -> bool:
    """Whether a column of this type of Arrow's has lists of numbers."""
    from pyarrow import types

    return bool(
        (
            types.is_list(type_)
            or types.is_large_list(type_)
            or types.is_fixed_size_list(type_)
        )
        and types.is_primitive(type_.value_type)
        and not types.is_temporal(type_.value_type)
    )


class _Parquet(Vectors):
    """A column of lists of one length."""

    def __init__(self, path: str, column: str | None) -> None:
        import pyarrow.parquet

        self.path = path
        with _naming(path):
            self._file = pyarrow.parquet.ParquetFile(path)
        lists = [f.name for f in self._file.schema_arrow if _is_vector(f.type)]
        if column is None:
            if len(lists) != 1:
                raise ValueError(
                    f"{path}: {len(lists)} columns of lists ({lists}), name "
                    "one behind the path: FILE:COLUMN"
                )
            column = lists[0]
        if column not in lists:
            raise ValueError(
                f"{path}: no column {column!r} of lists of numbers, expected "
                f"one of {lists}"
            )
        self._column = column
        first = next(self._batches(1), None)
        if first is None:
            raise ValueError(f"{path}: the column {column!r} is empty")
        super().__init__(
            path, self._file.metadata.num_rows, first.shape[1], first.dtype
        )

    def _batches(self, rows: int) -> Iterator[NDArray[Any]]:
        from pyarrow import compute

        done = 0
        batches = self._file.iter_batches(rows, columns=[self._column])
        while True:
            with _naming(self.path):
                batch = next(batches, None)
            if batch is None:
                return
            column = batch.column(0)
            if column.null_count:
                raise ValueError(
                    f"{self.path}: {self._column!r} has a null near row {done}"
                )
            flat = column.flatten().to_numpy(zero_copy_only=False)
            lengths = compute.list_value_length(column).to_numpy(
                zero_copy_only=False
            )
            if (lengths != lengths[0]).any():
                raise ValueError(
                    f"{self.path}: {self._column!r} has lists of different "
                    f"lengths near row {done}"
                )
            done += len(column)
            yield flat.reshape(len(column), -1)

    def blocks(self, rows: int = BLOCK_ROWS) -> Iterator[NDArray[Any]]:
        for block in self._batches(rows):
            if block.shape[1] != self.d:
                raise ValueError(
                    f"{self.path}: {self._column!r} has lists of different "
                    "lengths"
                )
            yield block


def _bin(path: str, dtype: Any) -> NDArray[Any]:
    size = os.path.getsize(path)
    if size < 8:
        raise ValueError(f"{path}: {size} bytes, expected a header of 8")
    n, d = (int(v) for v in np.fromfile(path, np.uint32, 2))
    expected = 8 + n * d * np.dtype(dtype).itemsize
    if size != expected or d == 0:
        raise ValueError(
            f"{path}: {size} bytes, expected {expected} by its header "
            f"({n} x {d})"
        )
    return np.memmap(path, dtype, "r", offset=8, shape=(n, d))


def _vecs(path: str, dtype: Any) -> NDArray[Any]:
    size = os.path.getsize(path)
    if size < 4:
        raise ValueError(f"{path}: {size} bytes, expected a header of 4")
    d = int(np.fromfile(path, np.int32, 1)[0])
    item = np.dtype(dtype).itemsize
    if d <= 0 or size % (4 + d * item):
        raise ValueError(
            f"{path}: {size} bytes are no multiple of 4 + {d} * {item}, the "
            "size of a row"
        )
    n = size // (4 + d * item)
    row = np.dtype([("d", np.int32), ("x", dtype, (d,))])
    rows = np.memmap(path, row, "r", shape=(n,))
    for begin in range(0, n, BLOCK_ROWS):
        other = np.flatnonzero(rows["d"][begin : begin + BLOCK_ROWS] != d)
        if len(other):
            at = begin + int(other[0])
            raise ValueError(
                f"{path}: row {at} has {rows['d'][at]} values, expected the "
                f"first row's {d}"
            )
    return rows["x"]


def split_name(path: str | os.PathLike[str]) -> tuple[str, str | None]:
    """The file of FILE:NAME, and NAME."""
    text = os.fspath(path)
    if os.path.exists(text) or ":" not in text:
        return text, None
    file, name = text.rsplit(":", 1)
    return file, name


def check_file(path: str | os.PathLike[str]) -> None:
    if os.path.isdir(path):
        raise IsADirectoryError(f"{path}: a folder, expected a file")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file")
    if not os.path.isfile(path):
        raise OSError(f"{path}: a pipe or a device, expected a file")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path}: it may not be read")


def open_vectors(path: str | os.PathLike[str], part: str = "train") -> Vectors:
    """The vectors of a file, by its ending.

    Parameters
    ----------
    path : str or path
        .fbin, .u8bin, .i8bin, .ibin, .fvecs, .bvecs, .ivecs, .npy, .hdf5 (of
        ann-benchmarks) or .parquet; ``FILE:NAME`` names a data set or column.
    part : str
        The data set of an .hdf5 that is not named: ``"train"``, ``"test"`` or
        ``"neighbors"``.

    Raises
    ------
    ValueError
        Naming the file, for one that is foreign or truncated.
    OSError
        For one that cannot be opened.
    """
    text, name = split_name(path)
    ending = Path(text).suffix.lower()
    if ending not in ENDINGS:
        raise ValueError(
            f"{text}: expected a name that ends in one of {', '.join(ENDINGS)}"
        )
    check_file(text)
    if ending in (".hdf5", ".h5"):
        return _Hdf5(text, name or part)
    if ending == ".parquet":
        return _Parquet(text, name)
    if name is not None:
        raise ValueError(
            f"{text}:{name}: a file that ends in {ending} has no parts, "
            f"expected {text}"
        )
    if ending == ".npy":
        with _naming(text), np.errstate(over="ignore"):
            rows = np.lib.format.open_memmap(text, mode="r")
        if rows.ndim != 2:
            raise ValueError(
                f"{text}: shape {rows.shape}, expected two dimensions"
            )
        return _Mapped(text, rows)
    read, dtype = {
        ".fbin": (_bin, np.float32),
        ".u8bin": (_bin, np.uint8),
        ".i8bin": (_bin, np.int8),
        ".ibin": (_bin, np.int32),
        ".fvecs": (_vecs, np.float32),
        ".bvecs": (_vecs, np.uint8),
        ".ivecs": (_vecs, np.int32),
    }[ending]
    return _Mapped(text, read(text, dtype))


#: What is written, by the ending of the file's name.
IDS: dict[str, Any] = {".npy": np.int64, ".ibin": np.int32}
DISTANCES: dict[str, Any] = {".npy": np.float32, ".fbin": np.float32}


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that takes the place of the old one, of its mode, once it is
    whole. What is there and no regular file is written to."""
    if os.path.exists(path) and not os.path.isfile(path):
        with open(path, "wb") as there:
            yield there
        return
    out = Path(os.path.realpath(path))
    mode = stat.S_IMODE(out.stat().st_mode) if out.exists() else None
    fd, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            if mode is None:
                mask = os.umask(0)
                os.umask(mask)
                mode = 0o666 & ~mask
            os.fchmod(fd, mode)
            yield file
            file.flush()
            os.fsync(fd)
        os.replace(name, out)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(path)  # of a full disk
        raise


def dtype_of_name(path: str | os.PathLike[str], dtypes: dict[str, Any]) -> Any:
    """What a file of this name holds, of IDS or DISTANCES; ValueError for
    another ending."""
    ending = Path(path).suffix.lower()
    if ending not in dtypes:
        raise ValueError(
            f"{path}: expected a name that ends in {' or '.join(dtypes)}"
        )
    return dtypes[ending]


def write_matrix(path: str | os.PathLike[str], rows: NDArray[Any]) -> None:
    """Writes integers as IDS and other numbers as DISTANCES; the old file or
    the new one is there."""
    dtype = dtype_of_name(path, IDS if rows.dtype.kind in "iu" else DISTANCES)
    if (
        dtype is np.int32
        and rows.size
        and not (-(2**31) <= rows.min() and rows.max() < 2**31)
    ):
        raise ValueError(f"{path}: ids do not fit in int32, use .npy")
    data = np.ascontiguousarray(rows, dtype)
    with replacing(path) as file:
        if Path(path).suffix.lower() == ".npy":
            np.lib.format.write_array_header_1_0(
                file, np.lib.format.header_data_from_array_1_0(data)
            )
        else:
            file.write(np.array(rows.shape, np.uint32).tobytes())
        file.write(data.data)
