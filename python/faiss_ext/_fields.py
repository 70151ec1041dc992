"""What an index can be asked for and set to."""

from __future__ import annotations

from typing import Any, Generic, TypeVar, overload

from . import _core
from ._core import Calibration, ClusteringParameters, SearchCosts

T = TypeVar("T")
_EXPECTED = {
    bool: "True or False",
    int: "an integer of at least 0",
    float: "a number",
    str: "a string",
    SearchCosts: "a SearchCosts",
}


class _ReadOnly(Generic[T]):
    """A field of the C++ index."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, index: None, owner: Any = None) -> _ReadOnly[T]: ...
    @overload
    def __get__(self, index: Fields, owner: Any = None) -> T: ...
    def __get__(self, index: Any, owner: Any = None) -> Any:
        if index is None:
            return self
        try:
            return getattr(index._core, self.name)
        except _core.FaissError as error:
            # hasattr, copy and pickle ask for what may not be there.
            raise AttributeError(str(error)) from None


class _Field(_ReadOnly[T]):
    """One that can be set."""

    def __set__(self, index: Fields, value: T) -> None:
        try:
            setattr(index._core, self.name, value)
        except TypeError:
            kind = type(self.__get__(index))
            wrong = ValueError if isinstance(value, kind) else TypeError
            raise wrong(
                f"{self.name} = {value!r}, expected {_EXPECTED[kind]}"
                + (", of 31 bits" if wrong is ValueError else "")
            ) from None
        except _core.FaissError as error:
            if self.name in str(error):
                raise
            raise _core.FaissError(f"{self.name}: {error}") from None


class Fields:
    """The fields of the C++ index."""

    __slots__ = ("_core", "__weakref__")

    _core: _core.Index

    d = _ReadOnly[int]("Dimension of the vectors.")
    ntotal = _ReadOnly[int]("Vectors in it.")
    is_trained = _ReadOnly[bool]("Whether `add` may be called.")
    metric_type = _ReadOnly[int]("METRIC_L2 or METRIC_INNER_PRODUCT.")
    verbose = _Field[bool](
        "Prints what it does; for what comes in blocks a bar of tqdm's, where "
        "it is installed."
    )
    nlist = _ReadOnly[int]("Lists, or components.")
    code_size = _ReadOnly[int]("Bytes of a vector.")
    cp = _ReadOnly[ClusteringParameters](
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
    backend = _ReadOnly[str]('What trained it, "cpu" or "cuda".')
    cells_per_list = _Field[int](
        "Cells in each list; 0: from the list sizes, 1: plain IVF."
    )
    code_bits = _Field[int](
        "Bits a dimension of the vectors' codes: 1, 2, 4, or 0 for what suits "
        "the dimension; set it before adding."
    )
    max_assign = _Field[int]("Lists that a vector may be in, 1 to nlist.")
    assign_ratio = _Field[float](
        "How much farther a copy's list may be, at least 0."
    )
    assign_threshold = _Field[float](
        "Above 0: copies go to components of that responsibility."
    )
    calibration = _ReadOnly[Calibration](
        "What was learnt from known neighbours, a copy."
    )
    search_costs = _Field[SearchCosts](
        "By which a calibration compares settings, a copy. The first one "
        "measures them, unless they were set after training and before "
        "adding: indexes built with the same ones choose the same settings."
    )
    direct_map = _ReadOnly[str]("The type of map, see `set_direct_map`.")
    calibrate_on_add = _Field[bool](
        "Calibrates again whenever the index has grown by 1.3."
    )

    @property
    def has_mixture(self) -> bool:
        """Whether there is a GMM index inside."""
        return self._core.has_mixture()
