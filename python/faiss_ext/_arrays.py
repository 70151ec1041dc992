"""From what users have to the arrays that the C++ side takes."""

from __future__ import annotations

import numbers
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from . import _core

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]

#: Bytes of float32 that are converted at once.
BLOCK_BYTES = 64 << 20
_Scalar = TypeVar("_Scalar", bound=np.generic)
_ON_CPU = (1, 3)  # DLPack's kDLCPU and kDLCUDAHost
_ON_CUDA = 2
_READ_IN_PLACE = ("float32", "float16", "uint8")
_INT64 = np.iinfo(np.int64)


def on_device(x: Any) -> bool:
    """Whether `x` is an array outside the memory that a CPU reads."""
    if isinstance(x, np.ndarray) or not hasattr(x, "__dlpack_device__"):
        return False
    return bool(x.__dlpack_device__()[0] not in _ON_CPU)


def readable_on_device(x: Any, d: int | None = None) -> Any:
    """What C++ reads of `x` in a GPU's memory, or None: float32, float16 and
    uint8 of shape (n, d), C-contiguous."""
    if not on_device(x) or x.__dlpack_device__()[0] != _ON_CUDA:
        return None
    if not _core.cuda_available():
        return None
    if str(getattr(x, "dtype", "")).split(".")[-1] not in _READ_IN_PLACE:
        return None
    if x.ndim != 2 or len(x) == 0 or d not in (None, x.shape[1]):
        return None
    if hasattr(x, "detach"):  # torch
        x = x.detach()
        return x if x.is_contiguous() else None
    flags = getattr(x, "flags", None)  # cupy
    return x if flags is not None and flags.c_contiguous else None


def _to_host(x: Any, name: str) -> Any:
    for method in ("get", "cpu", "__array__"):  # cupy, torch, jax
        if hasattr(x, method):
            return getattr(x, method)()
    raise TypeError(
        f"{name}: a {type(x).__name__} on a device of DLPack's type "
        f"{int(x.__dlpack_device__()[0])}, expected one with get(), cpu() or "
        "__array__()"
    )


def _of_nullable(x: Any) -> Any:
    """A data frame's columns of pandas' own numbers, gaps as NaN; `x` where it
    is another."""
    dtypes = [getattr(t, "numpy_dtype", t) for t in getattr(x, "dtypes", [])]
    if not dtypes or not all(
        isinstance(t, np.dtype) and t.kind in "fiub" for t in dtypes
    ):
        return x
    # float32 at least, which has a NaN
    common = np.result_type(np.float32, *dtypes)
    return x.to_numpy(dtype=common, na_value=np.nan)


def has_mask(x: Any) -> bool:
    """Whether `x`, or a row of a list, is an array of numpy's with a mask."""
    rows = x if isinstance(x, (list, tuple)) else (x,)
    return any(isinstance(row, np.ma.MaskedArray) for row in rows)


def as_array(x: Any, name: str) -> NDArray[Any]:
    """A numpy view of `x`, or a copy where there can be none."""
    if has_mask(x):
        try:
            x = np.ma.asanyarray(x)
        except ValueError as error:
            raise ValueError(f"{name}: not an array ({error})") from None
        masked = int(np.ma.getmaskarray(x).sum())
        if masked > 0:
            raise ValueError(
                f"{name}: {masked:,} values are masked, expected none: fill "
                "them, or leave their rows out"
            )
        return np.asarray(x.data)
    if isinstance(x, np.ndarray):
        return x
    if isinstance(x, (str, bytes)):
        raise TypeError(f"{name}: a {type(x).__name__}, expected vectors")
    # DLPack has none of Arrow's lists and bits.
    in_arrow = type(x).__module__.partition(".")[0] == "pyarrow"
    if hasattr(x, "__dlpack_device__") and not in_arrow:
        if on_device(x):
            x = _to_host(x, name)
        if not isinstance(x, np.ndarray):
            if hasattr(x, "detach"):
                x = x.detach()
            try:
                x = np.from_dlpack(x)
            except (BufferError, RuntimeError, ValueError) as error:
                raise TypeError(
                    f"{name}: a {type(x).__name__} that numpy cannot read "
                    f"({error}), expected real numbers such as float32"
                ) from None
        return np.asarray(x)
    try:
        a = np.asarray(x)
    except ValueError as error:
        raise ValueError(f"{name}: not an array ({error})") from None
    if a.dtype == np.object_ and a.ndim == 2:
        a = np.asarray(_of_nullable(x))
    if a.dtype == np.object_ and a.ndim == 0:
        raise TypeError(f"{name}: a {type(x).__name__}, expected an array")
    return a


def _check_matrix(a: NDArray[Any], name: str, d: int | None) -> None:
    if a.dtype == np.object_ and a.ndim == 1 and len(a) and np.ndim(a[0]) == 1:
        raise TypeError(
            f"{name}: {len(a)} arrays in one of dtype object, expected one "
            f"array (n, d), as np.stack(np.asarray({name})) makes of them"
        )
    if a.dtype.kind not in "fiub":
        raise TypeError(
            f"{name}: dtype {a.dtype}, expected real numbers such as float32"
        )
    if a.ndim != 2:
        raise ValueError(
            f"{name}: shape {a.shape}, expected two dimensions (n, d)"
        )
    if d is not None and a.shape[1] != d:
        raise ValueError(f"{name}: {a.shape[1]} columns, expected d = {d}")


def matrix(x: Any, name: str, d: int | None = None) -> NDArray[Any]:
    """`x` as a checked matrix of any real dtype and order, not converted."""
    a = as_array(x, name)
    _check_matrix(a, name, d)
    return a


def real(a: NDArray[Any]) -> NDArray[Any]:
    """The matrix in a dtype and an order that C++ reads, of its own numbers
    or the nearest: itself, or native bytes, or float64."""
    if a.dtype.kind not in "fiu" or a.dtype.itemsize > 8:
        a = a.astype(np.float64)
    if not a.dtype.isnative or (
        a.dtype == np.float16 and not a.flags.c_contiguous
    ):
        a = np.ascontiguousarray(a, a.dtype.newbyteorder("="))
    return np.asarray(a)


def floats(x: Any, name: str, d: int | None = None) -> Floats:
    """`x` as C-contiguous float32 of shape (n, d), itself where it is that."""
    if (
        type(x) is np.ndarray
        and x.dtype == np.float32
        and x.ndim == 2
        and x.flags.c_contiguous
        and (d is None or x.shape[1] == d)
    ):
        return x
    a = matrix(x, name, d)
    return np.ascontiguousarray(a, dtype=np.float32)


def is_source(a: Any) -> bool:
    """Whether C++ reads the matrix as it is: uint8 and float16."""
    return (
        isinstance(a, np.ndarray)
        and a.dtype in (np.uint8, np.float16)
        and a.flags.c_contiguous
        and len(a) > 0
    )


def is_floats(a: NDArray[Any]) -> bool:
    """Whether a matrix needs no conversion."""
    return bool(a.dtype == np.float32 and a.flags.c_contiguous)


def rows_of_block(a: NDArray[Any]) -> int:
    return max(1, BLOCK_BYTES // (4 * max(1, int(a.shape[1]))))


def is_one_block(a: NDArray[Any]) -> bool:
    """Whether float_blocks() of it is at most one."""
    return is_floats(a) or len(a) <= rows_of_block(a)


def float_blocks(a: NDArray[Any]) -> Iterator[tuple[int, Floats]]:
    """(first row, block) of a checked matrix; one block of what needs no
    conversion."""
    if is_floats(a):
        yield 0, np.asarray(a)
        return
    step = rows_of_block(a)
    for begin in range(0, len(a), step):
        block = a[begin : begin + step]
        yield begin, np.ascontiguousarray(block, dtype=np.float32)


def device_blocks(x: Any, name: str, d: int) -> Iterator[tuple[int, Floats]]:
    """(first row, block) of what is on a device."""
    step = max(1, BLOCK_BYTES // (4 * d))
    for begin in range(0, len(x), step):
        yield begin, floats(x[begin : begin + step], name, d)


@contextmanager
def block_of(
    name: str, begin: int = 0, rows: Ids | None = None
) -> Iterator[None]:
    """Errors of a block `x` say which row of `name` it is: they are counted
    from `begin`, or are those `rows`."""

    def named(found: re.Match[str]) -> str:
        row = int(found[1])
        return f"{name}: row {begin + row if rows is None else rows[row]}"

    try:
        yield
    except ValueError as error:
        message, found = re.subn(r"^x: row (\d+)", named, str(error))
        if not found:
            raise
        raise type(error)(message) from None


def check_finite(a: NDArray[Any], name: str, begin: int = 0) -> None:
    """Throws naming the first row, counted from `begin`, with a value that is
    not finite in float32."""
    if a.dtype.kind != "f":
        return
    with np.errstate(over="ignore"):
        for at, block in float_blocks(a):
            with block_of(name, begin + at):
                _core.check_finite("x", block)


def refuse_frames_of_dask(x: Any) -> None:
    """Their lengths are not known before they are computed."""
    if hasattr(x, "to_dask_array"):
        raise TypeError(
            f"x: a {type(x).__name__} of Dask, expected an array "
            "(to_dask_array(lengths=True))"
        )


def given_blocks(x: Any) -> Any:
    """A Dask array of two dimensions as an iterator of its blocks of rows,
    computed one by one; anything else as it is."""
    refuse_frames_of_dask(x)
    if not hasattr(x, "to_delayed") or getattr(x, "ndim", 0) != 2:
        return x
    whole_rows = x.rechunk({1: -1})
    return (
        whole_rows.blocks[i].compute() for i in range(whole_rows.numblocks[0])
    )


def is_blocks(x: Any) -> bool:
    """Whether `x` is an iterator of blocks, and not an array or a list."""
    return isinstance(x, Iterator) and not hasattr(x, "__array__")


def ids(x: Any, name: str, n: int | None = None) -> Ids:
    """`x` as C-contiguous int64 of shape (n,)."""
    a = as_array(x, name)
    if a.size == 0 and a.dtype.kind == "f":
        a = a.astype(np.int64)  # an empty list
    if a.dtype.kind not in "iu":
        raise TypeError(f"{name}: dtype {a.dtype}, expected integers")
    if a.dtype == np.uint64 and a.size and a.max() > _INT64.max:
        raise ValueError(f"{name}: {a.max()} does not fit in int64")
    if a.ndim != 1:
        raise ValueError(f"{name}: shape {a.shape}, expected one dimension")
    if n is not None and len(a) != n:
        raise ValueError(
            f"{name}: {len(a)} of them, expected one for each of {n} vectors"
        )
    return np.ascontiguousarray(a, dtype=np.int64)


def count(
    value: Any, name: str, least: int | None = 1, most: int = _INT64.max
) -> int:
    """`value` as an int of at least `least`, and of 64 bits."""
    if isinstance(value, bool) or not isinstance(
        value, (numbers.Integral, np.integer)
    ):
        bound = "" if least is None else f" of at least {least}"
        raise TypeError(f"{name} = {value!r}, expected an integer{bound}")
    number = int(value)
    if least is None:
        least = _INT64.min
    if number < least:
        raise ValueError(f"{name} = {number}, expected at least {least}")
    if number > most:
        raise ValueError(f"{name} = {number}, expected at most {most}")
    return number


def flag(value: Any, name: str) -> bool:
    """`value` as a bool; 0 and 1 are such, too."""
    if isinstance(value, (np.bool_, numbers.Integral)) and value in (0, 1):
        return bool(value)
    raise TypeError(f"{name} = {value!r}, expected True or False")


def choice(value: Any, name: str, choices: Collection[str]) -> str:
    """`value` as one of these strings."""
    if not isinstance(value, str) or value not in choices:
        expected = ", ".join(f'"{one}"' for one in choices)
        raise ValueError(f"{name} = {value!r}, expected one of {expected}")
    return value


def text(value: Any, name: str) -> str:
    """`value` as a string that C++ takes whole."""
    if not isinstance(value, str):
        raise TypeError(f"{name} = {value!r}, expected a string")
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
        raise ValueError(
            f"{name} = {value!r}, expected characters, none of them zero or "
            "a lone surrogate"
        )
    return value


def out(
    array: NDArray[Any] | None,
    name: str,
    shape: tuple[int, ...],
    dtype: type[_Scalar],
) -> NDArray[_Scalar]:
    """`array` if it can be written to, or a new one for None."""
    if array is None:
        return np.empty(shape, dtype)
    if not isinstance(array, np.ndarray):
        given = f"a {type(array).__name__}"
    elif array.dtype != dtype or array.shape != shape:
        given = f"shape {array.shape} and dtype {array.dtype}"
    elif not array.flags.c_contiguous:
        given = f"strides {array.strides}"
    elif not array.flags.writeable:
        given = "read-only"
    else:
        return array
    raise ValueError(
        f"{name}: {given}, expected a writeable C-contiguous array of shape "
        f"{shape} and dtype {np.dtype(dtype)}"
    )


def sample_rows(a: Any, most: int, seed: int) -> tuple[Any, Ids | None]:
    """At most that many rows, evenly drawn, in their order, and their numbers
    (None for all); of what is on a device there."""
    if len(a) <= most:
        return a, None
    rows = np.random.default_rng(seed).choice(len(a), most, replace=False)
    rows.sort()
    return a[rows], rows


def sample_blocks(
    blocks: Iterable[Any], name: str, d: int, most: int, seed: int
) -> Floats:
    """At most that many rows of all blocks, each as likely as any other
    (Vitter 1985, algorithm R)."""
    random = np.random.default_rng(seed)
    kept: list[Floats] = []
    seen = 0
    reservoir: Floats | None = None
    for number, x in enumerate(blocks):
        block = floats(x, f"{name}[{number}]", d)
        _core.check_finite(f"{name}[{number}]", block)
        if reservoir is None:
            room = most - seen
            kept.append(block[:room].copy())
            seen += len(kept[-1])
            block = block[room:]
            if seen < most:
                continue
            reservoir = np.concatenate(kept)
            kept = []
        # Row t of the stream takes a random place among t + 1, if it is one
        # of the reservoir's.
        places = random.integers(0, seen + 1 + np.arange(len(block)))
        seen += len(block)
        for row in np.flatnonzero(places < most):
            reservoir[places[row]] = block[row]
    if reservoir is not None:
        return reservoir
    return np.concatenate(kept) if kept else np.empty((0, d), np.float32)
