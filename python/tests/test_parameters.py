"""What one search says, and which ids it may find."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import faiss_ext
from conftest import Floats, Ids, make, recall
from faiss_ext import SearchParameters


def test_parameters_hold_for_one_call(
    filled: faiss_ext.Index, queries: Floats, truth: Ids
) -> None:
    filled.nprobe = 1
    before = filled.search(queries, 10)[1]
    full = filled.search(queries, 10, params=SearchParameters(nprobe=32))[1]
    assert recall(full, truth) == 1
    np.testing.assert_array_equal(filled.search(queries, 10)[1], before)


def test_what_is_left_out_is_the_indexs_own(
    filled: faiss_ext.Index, queries: Floats
) -> None:
    filled.nprobe = 5
    filled.probe_order = "cell_distance"
    np.testing.assert_array_equal(
        filled.search(queries, 10)[1],
        filled.search(queries, 10, params=SearchParameters())[1],
    )


def test_target_recall_of_a_call(
    filled: faiss_ext.Index, queries: Floats, truth: Ids
) -> None:
    p = SearchParameters(target_recall=0.97)
    assert recall(filled.search(queries, 10, params=p)[1], truth) > 0.93


def test_nprobe_of_a_call_is_not_overruled_by_the_indexs_target(
    filled: faiss_ext.Index, queries: Floats, truth: Ids
) -> None:
    filled.target_recall = 0.5
    p = SearchParameters(nprobe=32)
    assert recall(filled.search(queries, 10, params=p)[1], truth) == 1


def test_max_codes_bounds_what_is_found(
    filled: faiss_ext.Index, queries: Floats
) -> None:
    p = SearchParameters(nprobe=32, max_codes=3, probe_order="codes")
    labels = filled.search(queries, 10, params=p)[1]
    assert ((labels >= 0).sum(axis=1) <= 3).all()


@pytest.mark.parametrize(
    "order",
    [
        "calibrated",
        "distance",
        "log_likelihood",
        "scale_free",
        "codes",
    ],
)
def test_every_order_finds_something(
    filled: faiss_ext.Index, queries: Floats, truth: Ids, order: Any
) -> None:
    p = SearchParameters(nprobe=8, probe_order=order)
    assert p.probe_order == order
    assert recall(filled.search(queries, 10, params=p)[1], truth) > 0.6


def test_selectors(filled: faiss_ext.Index, queries: Floats) -> None:
    allowed = np.arange(0, 6000, 3)
    mask = np.zeros(6000, bool)
    mask[allowed] = True
    bits = np.packbits(mask, bitorder="little")
    expected = None
    for sel in (
        allowed,
        allowed.astype(np.int32),
        list(allowed),
        range(0, 6000, 3),
        mask,
        faiss_ext.IDSelectorBatch(allowed),
        faiss_ext.IDSelectorBitmap(bits),
        ~faiss_ext.IDSelectorBatch(np.flatnonzero(~mask)),
    ):
        p = SearchParameters(nprobe=32, sel=sel)
        I = filled.search(queries, 10, params=p)[1]
        assert mask[I].all()
        expected = I if expected is None else expected
        np.testing.assert_array_equal(I, expected)


def test_range_selector(filled: faiss_ext.Index, queries: Floats) -> None:
    p = SearchParameters(nprobe=32, sel=range(100, 200))
    I = filled.search(queries, 10, params=p)[1]
    assert ((I >= 100) & (I < 200)).all()
    sel = faiss_ext.IDSelectorRange(100, 200)
    assert [sel.is_member(i) for i in (99, 100, 199, 200)] == [
        False,
        True,
        True,
        False,
    ]
    assert not (~sel).is_member(150)


@pytest.mark.parametrize(
    "ids",
    [
        range(7, 6000, 3),
        range(5999, 10, -5),
        range(5, 0, -1),
        range(0, 10**12, 3),
        range(2**63 - 1, -(2**63), -(2**62)),
        range(0, 5, -1),
        range(5, 2),
    ],
)
def test_ranges_with_steps(
    ids: range, filled: faiss_ext.Index, queries: Floats
) -> None:
    p = SearchParameters(nprobe=32, sel=ids)
    assert p.sel is not None
    for i in (-1, 0, 1, 5, 7, 8, 10, 2999, 5999, 2**62, 2**63 - 1):
        assert p.sel.is_member(i) == (i in ids)
    listed = np.array([i for i in range(6000) if i in ids], np.int64)
    np.testing.assert_array_equal(
        filled.search(queries, 10, params=p)[1],
        filled.search(
            queries, 10, params=SearchParameters(nprobe=32, sel=listed)
        )[1],
    )
    assert filled.remove_ids(ids) == len(listed)


def test_ranges_that_do_not_fit() -> None:
    for ids, end in (
        (range(2**64), "stop"),
        (range(0, 5, 2**64), "step"),
    ):
        with pytest.raises(ValueError, match=f"^sel.{end} = {2**64}"):
            SearchParameters(sel=ids)


@pytest.mark.parametrize("text", ["nprobe=2\0,nonsense=3", "\udc80"])
def test_strings_that_no_c_takes(text: str, filled: faiss_ext.Index) -> None:
    for name, call in (
        ("description", filled.set_parameters),
        ("description", lambda s: faiss_ext.index_factory(16, s)),
        ("probe_order", lambda s: SearchParameters(probe_order=s)),
    ):
        with pytest.raises(ValueError, match=f"^{name} = .*, expected char"):
            call(text)


def test_a_selector_outlives_what_it_was_made_of(
    filled: faiss_ext.Index, queries: Floats
) -> None:
    p = SearchParameters(
        nprobe=32, sel=~~faiss_ext.IDSelectorBatch(np.arange(50))
    )
    assert (filled.search(queries, 5, params=p)[1] < 50).all()


def test_selector_that_nothing_passes(
    filled: faiss_ext.Index, queries: Floats
) -> None:
    p = SearchParameters(nprobe=32, sel=[])
    assert (filled.search(queries, 5, params=p)[1] == -1).all()


def test_range_search_with_a_selector(
    filled: faiss_ext.Index, queries: Floats
) -> None:
    p = SearchParameters(nprobe=32, sel=range(1000))
    _, _, I = filled.range_search(queries, 80000.0, params=p)
    assert len(I) > 0
    assert (I < 1000).all()


def test_parameters_reach_an_index_behind_a_transform(
    base: Floats, queries: Floats
) -> None:
    index = make("PCA32,GMM16,Flat", base)
    index.add(base)
    index.nprobe = 1
    p = SearchParameters(nprobe=16)
    found = index.search(queries, 10, params=p)[1]
    index.nprobe = 16
    np.testing.assert_array_equal(found, index.search(queries, 10)[1])


def test_parameters_of_a_stock_ivf(
    base: Floats, queries: Floats, truth: Ids
) -> None:
    index = make("IVF16,Flat", base)
    index.add(base)
    p = SearchParameters(nprobe=16, sel=range(3000))
    I = index.search(queries, 10, params=p)[1]
    assert (I < 3000).all()
    with pytest.raises(ValueError, match="GMM index"):
        index.search(queries, 10, params=SearchParameters(target_recall=0.9))


def test_parameters_of_a_flat_index(base: Floats, queries: Floats) -> None:
    index = faiss_ext.index_factory(128, "Flat")
    index.add(base)
    I = index.search(queries, 3, params=SearchParameters(sel=range(10)))[1]
    assert (I < 10).all()
    with pytest.raises(ValueError, match="without lists"):
        index.search(queries, 3, params=SearchParameters(nprobe=2))


def test_a_refined_index_takes_none(base: Floats, queries: Floats) -> None:
    index = make("GMM16,SQ8,RFlat", base)
    index.add(base)
    with pytest.raises(ValueError, match="^params: an index with RFlat"):
        index.search(queries, 3, params=SearchParameters(nprobe=2))


def test_parameters_of_faiss_are_read_by_field(
    filled: faiss_ext.Index, queries: Floats
) -> None:
    foreign = SimpleNamespace(
        nprobe=32, max_codes=0, sel=SimpleNamespace(imin=0, imax=500)
    )
    I = filled.search(queries, 5, params=foreign)[1]
    assert (I < 500).all()


def test_parameters_that_cannot_be() -> None:
    cases: list[tuple[dict[str, Any], type[Exception]]] = [
        ({"nprobe": 0}, ValueError),
        ({"nprobe": 1.5}, TypeError),
        ({"nprobe": True}, TypeError),
        ({"max_codes": -1}, ValueError),
        ({"probe_mass": 0}, ValueError),
        ({"probe_mass": 1.1}, ValueError),
        ({"target_recall": 1}, ValueError),
        ({"probe_order": "random"}, ValueError),
        ({"sel": "all"}, TypeError),
        ({"sel": [0.5]}, TypeError),
    ]
    for wrong, error in cases:
        name, value = next(iter(wrong.items()))
        with pytest.raises(error, match=name):
            SearchParameters(**wrong)
        params = SearchParameters()
        with pytest.raises(error, match=name):
            setattr(params, name, value)
        assert getattr(params, name) is None
    with pytest.raises(AttributeError, match="nprob"):
        params.nprob = 3  # type: ignore[attr-defined]


def test_parameters_are_pickled() -> None:
    params = SearchParameters(nprobe=3, probe_order="codes")
    assert repr(pickle.loads(pickle.dumps(params))) == repr(params)
    setattr(params, "sel", [1, 2])  # noqa: B010 (typed as a selector)
    with pytest.raises(TypeError, match="a selector cannot be pickled"):
        pickle.dumps(params)


def test_repr() -> None:
    p = SearchParameters(nprobe=3, probe_mass=0.5)
    assert repr(p) == "SearchParameters(nprobe=3, probe_mass=0.5)"


def test_settings_on_several_lines(filled: faiss_ext.Index) -> None:
    filled.set_parameters("nprobe = 5,\n\tprobe_mass = 0.5\n")
    assert filled.nprobe == 5 and filled.probe_mass == 0.5
