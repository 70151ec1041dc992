"""Which ids a search may find, and what one search says."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _arrays, _core
from ._core import IDSelector

__all__ = [
    "IDSelector",
    "IDSelectorBatch",
    "IDSelectorBitmap",
    "IDSelectorRange",
    "SearchParameters",
]


def IDSelectorRange(imin: int, imax: int) -> IDSelector:
    """Ids from `imin` to below `imax`.

    Parameters
    ----------
    imin, imax : int

    Returns
    -------
    IDSelector
    """
    return _core.IDSelectorRange(
        _arrays.count(imin, "imin", None), _arrays.count(imax, "imax", None)
    )


def IDSelectorBatch(ids: Any) -> IDSelector:
    """The ids of an integer array.

    Parameters
    ----------
    ids : array of int of shape (n,)

    Returns
    -------
    IDSelector
    """
    return _core.IDSelectorBatch(_arrays.ids(ids, "ids"))


def IDSelectorBitmap(bitmap: Any) -> IDSelector:
    """Id i where bit ``i % 8`` of byte ``i // 8`` is set.

    Parameters
    ----------
    bitmap : ndarray of uint8 of one dimension
        As numpy.packbits packs a mask with ``bitorder="little"``.

    Returns
    -------
    IDSelector
    """
    a = np.ascontiguousarray(_arrays.as_array(bitmap, "bitmap"))
    if a.dtype != np.uint8 or a.ndim != 1:
        raise TypeError(
            f"bitmap: dtype {a.dtype}, shape {a.shape}, expected uint8 of one "
            "dimension; a boolean mask is a selector as it is"
        )
    return _core.IDSelectorBitmap(a)


def selector(sel: Any, name: str = "sel") -> IDSelector | None:
    """`sel` as an IDSelector; None stays None."""
    if sel is None or isinstance(sel, IDSelector):
        return sel
    if isinstance(sel, range):
        for end in ("start", "stop", "step"):
            _arrays.count(getattr(sel, end), f"{name}.{end}", None)
        if sel.step == 1 or not sel:
            return IDSelectorRange(sel.start, sel.stop if sel else sel.start)
        first, last = sorted((sel[0], sel[-1]))
        return _core.IDSelectorSteps(first, last, abs(sel.step), repr(sel))
    # faiss's own: what can be read of it from outside.
    if hasattr(sel, "imin") and hasattr(sel, "imax"):
        return IDSelectorRange(sel.imin, sel.imax)
    if hasattr(sel, "is_member"):
        raise TypeError(
            f"{name}: a faiss.{type(sel).__name__}, expected ids, a boolean "
            "mask, a range or a selector of faiss_ext"
        )
    a = _arrays.as_array(sel, name)
    if a.dtype == np.bool_:
        if a.ndim != 1:
            raise ValueError(
                f"{name}: shape {a.shape}, expected a mask of one dimension"
            )
        return IDSelectorBitmap(np.packbits(a, bitorder="little"))
    return _core.IDSelectorBatch(_arrays.ids(a, name))


class SearchParameters(_core.SearchParameters):
    """What one search says; what is left out is the index's own.

    Parameters
    ----------
    nprobe : int, optional
        Lists that are looked at in any case; the cost of that many.
    max_codes : int, optional
        The most distances a query computes; 0 sets no limit.
    probe_order : str, optional
        ``"calibrated"``, ``"codes"``, ``"distance"``, ``"scale_free"`` or
        ``"log_likelihood"``.
    probe_mass : float, optional
        In (0, 1]. Below 1 by codes the same as `target_recall`; for orders of
        whole lists, the share of the posterior after which a query stops.
    target_recall : float, optional
        In [0, 1). Above 0 the calibration chooses order and cost, and `nprobe`
        is not used. Left out, it is the index's own, or 0 where `nprobe`,
        `probe_order` or `probe_mass` is given.
    sel : IDSelector, range, array of int or array of bool, optional
        The ids that may be found; a boolean array is a mask by id.

    Raises
    ------
    ValueError, TypeError
        For a value that cannot be, naming it.
    """

    __slots__ = ()

    def __init__(
        self,
        *,
        nprobe: int | None = None,
        max_codes: int | None = None,
        probe_order: str | None = None,
        probe_mass: float | None = None,
        target_recall: float | None = None,
        sel: Any = None,
    ) -> None:
        super().__init__()
        self.nprobe = nprobe
        self.max_codes = max_codes
        self.probe_order = probe_order
        self.probe_mass = probe_mass
        self.target_recall = target_recall
        self.sel = sel

    if not TYPE_CHECKING:  # to a checker names are those of _core

        def __setattr__(self, name: str, value: Any) -> None:
            if value is not None:
                value = _checked(name, value)
            try:
                super().__setattr__(name, value)
            except _core.FaissError as error:
                raise ValueError(f"{name}: {error}") from None

    def _given(self) -> dict[str, Any]:
        names = (
            "nprobe",
            "max_codes",
            "probe_order",
            "probe_mass",
            "target_recall",
            "sel",
        )
        values = ((name, getattr(self, name)) for name in names)
        return {name: v for name, v in values if v is not None}

    def __repr__(self) -> str:
        inside = ", ".join(f"{n}={v!r}" for n, v in self._given().items())
        return f"SearchParameters({inside})"

    def __reduce__(self) -> Any:
        if self.sel is not None:
            raise TypeError(
                "SearchParameters: a selector cannot be pickled; send the ids "
                "and make it there"
            )
        return _of_dict, (self._given(),)


def _of_dict(given: dict[str, Any]) -> SearchParameters:
    return SearchParameters(**given)


def _checked(name: str, value: Any) -> Any:
    """A value of SearchParameters as C++ takes it."""
    if name == "nprobe":
        return _arrays.count(value, name)
    if name == "max_codes":
        return _arrays.count(value, name, 0)
    if name == "sel":
        return selector(value)
    if name == "probe_order":
        return _arrays.text(value, name)
    if name in ("probe_mass", "target_recall"):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"{name} = {value!r}, expected a number") from None
        if name == "probe_mass" and not 0 < number <= 1:
            raise ValueError(f"{name} = {value}, expected a value in (0, 1]")
        if name == "target_recall" and not 0 <= number < 1:
            raise ValueError(
                f"{name} = {value}, expected a value in [0, 1); for 1 set "
                "nprobe = nlist"
            )
        return number
    return value


def parameters(params: Any) -> _core.SearchParameters | None:
    """`params` as ours; a faiss.SearchParametersIVF is read field by field."""
    if params is None or isinstance(params, _core.SearchParameters):
        return params
    read: dict[str, Any] = {
        name: operator.index(getattr(params, name))
        for name in ("nprobe", "max_codes")
        if hasattr(params, name)
    }
    names = [c.__name__ for c in type(params).__mro__]
    kind = next((n for n in names if n.startswith("SearchParameters")), "")
    if not read and kind != "SearchParameters":
        raise TypeError(
            f"params: a {type(params).__name__}, expected SearchParameters"
        )
    inner = getattr(params, "quantizer_params", None)
    if inner is not None:
        raise TypeError(
            f"params.quantizer_params: a faiss.{type(inner).__name__}, "
            "expected None: a search chooses its lists by nprobe and "
            "target_recall"
        )
    sel = getattr(params, "sel", None)
    # faiss gives the selector back as its base class; what it was stands
    # among what the parameters keep alive, by a name that depends on the
    # version.
    for kept in (
        *getattr(params, "referenced_objects", ()),
        *getattr(params, "_sp_field_refs", {}).values(),
    ):
        if hasattr(kept, "is_member"):
            sel = kept
    return SearchParameters(**read, sel=sel)
