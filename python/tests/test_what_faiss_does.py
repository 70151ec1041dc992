"""Calls at which FAISS ends the process, or goes wrong without a word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import faiss_ext
from conftest import Floats, fill, make

FAST_SCAN = ["GMM16,PQ4x4fs", "PCA8,GMM16,PQ4x4fs", "IVF16,PQ4x4fs"]
D = 16


def before_1_15() -> bool:
    major, minor = faiss_ext.faiss_version.split(".")[:2]
    return (int(major), int(minor)) < (1, 15)


@pytest.fixture(scope="module")
def x() -> Any:
    rng = np.random.default_rng(0)
    return rng.normal(size=(1500, D)).astype(np.float32)


def filled_with(factory: str, x: Floats) -> Any:
    index = make(factory, x)
    fill(index, x)
    return index


@pytest.mark.skipif(not before_1_15(), reason="newer FAISS does it")
@pytest.mark.parametrize("factory", FAST_SCAN)
def test_fast_scan_neither_removes_nor_appends(
    factory: str, x: Floats
) -> None:
    index = filled_with(factory, x)
    with pytest.raises(ValueError, match="^remove_ids: .* fast scan"):
        index.remove_ids([1, 2])
    other = faiss_ext.clone_index(index)
    with pytest.raises(ValueError, match=r"^merge_from: .*ntotal = 1500"):
        index.merge_from(other, 1500)
    assert (index.ntotal, other.ntotal) == (1500, 1500)
    empty = faiss_ext.clone_index(index)
    empty.reset()
    found = index.search(x[:5], 3)
    empty.merge_from(other)
    assert (empty.ntotal, other.ntotal) == (1500, 0)
    np.testing.assert_array_equal(empty.search(x[:5], 3)[1], found[1])


@pytest.mark.parametrize("factory", FAST_SCAN)
def test_fast_scan_probes_lists_that_there_are(
    factory: str, x: Floats
) -> None:
    index = filled_with(factory, x)
    index.nprobe = 16
    every = index.search(x[:5], 3)[1]
    index.nprobe = 10**9
    assert index.nprobe == 16
    np.testing.assert_array_equal(index.search(x[:5], 3)[1], every)
    index.set_parameters("nprobe=1000000000")
    np.testing.assert_array_equal(index.search(x[:5], 3)[1], every)


@pytest.mark.parametrize(
    "factory",
    [
        *FAST_SCAN,
        "GMM16,FlatDedup",
        "GMM16,ITQ16,SH2.5",
        "IVF16,Flat",
        "GMM16,Flat",
    ],
)
def test_a_merge_wants_both_trained(factory: str, x: Floats) -> None:
    trained = make(factory, x)
    fresh = [faiss_ext.index_factory(D, factory) for _ in range(2)]
    with pytest.raises(ValueError, match="not trained|same transformations"):
        fresh[0].merge_from(fresh[1])
    with pytest.raises(ValueError, match="not trained|same transformations"):
        fresh[0].merge_from(trained)
    with pytest.raises(ValueError, match="^other: "):
        trained.merge_from(fresh[0])


@pytest.mark.parametrize(
    ("factory", "metric", "match"),
    [
        ("GMM9,Flat", 1, "^other: nlist = 9, expected 8"),
        ("GMM8,SQ8", 1, '^other: "GMM8,SQ8", expected "GMM8,Flat"'),
        ("IVF8,Flat", 1, '^other: "IVF8,Flat", expected "GMM8,Flat"'),
        ("GMM8,Flat", 0, "^other: metric_type = 0, expected 1"),
    ],
)
def test_a_merge_says_what_differs(
    factory: str, metric: int, match: str, x: Floats
) -> None:
    index = filled_with("GMM8,Flat", x)
    other = make(factory, x, metric)
    other.add(x)
    with pytest.raises(ValueError, match=match):
        index.merge_from(other, 1500)
    assert (index.ntotal, other.ntotal) == (1500, 1500)


def test_a_merge_says_that_d_differs(x: Floats) -> None:
    narrow = make("GMM8,Flat", np.ascontiguousarray(x[:, :8]))
    for index in (make("GMM8,Flat", x), make("PCA8,GMM8,Flat", x)):
        with pytest.raises(ValueError, match="^other: d = 8, expected 16"):
            index.merge_from(narrow)


@pytest.mark.parametrize("factory", ["GMM16,ITQ16,SH2.5", "IVF16,ITQ8,SH2.5"])
def test_spectral_hashes_take_no_selector(factory: str, x: Floats) -> None:
    index = filled_with(factory, x)
    params = faiss_ext.SearchParameters(sel=[1, 2])
    for call in (index.search, index.range_search):
        with pytest.raises(ValueError, match="^params: .* takes no sel"):
            call(x[:2], 2, params=params)


@pytest.mark.parametrize(
    "factory", ["IDMap2,Flat", "IDMap2,PCA8,Flat", "PCA8,IDMap2,Flat"]
)
def test_a_reset_map_forgets_its_ids(factory: str, x: Floats) -> None:
    index = make(factory, x)
    index.add_with_ids(x[:2], [10, 20])
    index.reset()
    index.add_with_ids(x[2:3], [30])
    assert index.reconstruct(30).shape == (D,)
    with pytest.raises(ValueError, match="key 10 not found"):
        index.reconstruct(10)


@pytest.mark.parametrize(
    "factory", ["GMM4,FlatDedup", "IVF4,FlatDedup", "PCA8,IVF4,FlatDedup"]
)
def test_equal_vectors_that_share_an_entry(factory: str, x: Floats) -> None:
    index = make(factory, x)
    index.nprobe = 4
    index.add_with_ids(x[[0, 0, 1]], [1, 2, 3])
    # FAISS finds 2 as well, and nothing for [2].
    params = faiss_ext.SearchParameters(sel=[1])
    with pytest.raises(ValueError, match="^params: .* FlatDedup takes no sel"):
        index.search(x[:1], 3, params=params)
    other = faiss_ext.clone_index(index)
    with pytest.raises(ValueError, match="^other: it has equal vectors"):
        index.merge_from(other, 10)
    other.reset()
    other.add_with_ids(x[:1], [1])
    assert other.search(x[:1], 3)[1].tolist() == [[1, -1, -1]]
    index.merge_from(other, 10)
    assert sorted(index.search(x[:1], 4)[1][0]) == [1, 2, 3, 11]


@pytest.mark.parametrize("metric", [0, 1])
@pytest.mark.parametrize(
    "factory",
    ["Flat", "IDMap,Flat", "IDMap2,Flat", "GMM16,Flat", "GMM16,PQ4x4fs"],
)
def test_nothing_is_found_where_nothing_is(
    factory: str, metric: int, x: Floats
) -> None:
    index = make(factory, x, metric)
    worst = np.finfo(np.float32).max * (1 if metric else -1)
    for k in (1, 3):
        distances, found = index.search(x[:2], k)
        assert (found == -1).all()
        assert (distances == worst).all()
    with pytest.raises(ValueError, match="columns"):
        index.search(x[:2, :3], 1)


def test_what_is_not_there_is_not_reconstructed(x: Floats) -> None:
    index = faiss_ext.index_factory(D, "GMM16,Flat")
    index.train(x)
    _, found, vectors = index.search_and_reconstruct(x[:2], 2)
    assert (found == -1).all()
    assert np.isnan(vectors).all()


@pytest.mark.parametrize(
    "factory",
    [
        "PCA8,GMM16,Flat",
        "RR16,GMM16,Flat",
        "L2norm,GMM16,Flat",
        "RR16,IVF16,Flat",
        "L2norm,RR16,GMM16,SQ8",
    ],
)
def test_ids_that_are_not_there_behind_transforms(
    factory: str, x: Floats
) -> None:
    index = make(factory, x)
    index.add_with_ids(x, np.arange(1500) + 1000)
    for n0, ni, missing in ((0, 2, 0), (999, 2, 999), (1499, 1, None)):
        if missing is None:
            assert np.isfinite(index.reconstruct_n(n0, ni)).all()
            continue
        with pytest.raises(
            ValueError, match=f"no vector with the id {missing}"
        ):
            index.reconstruct_n(n0, ni)
    index.set_direct_map("hashtable")
    np.testing.assert_allclose(  # products of other shapes
        index.reconstruct_n(1200, 2),
        index.reconstruct_batch([1200, 1201]),
        rtol=1e-5,
        atol=1e-6,
    )


def test_removing_wants_a_trained_index(x: Floats) -> None:
    for factory in ("GMM8,RaBitQ4", "GMM8,Flat", "PCA8,IVF8,Flat"):
        index = faiss_ext.index_factory(D, factory)
        with pytest.raises(ValueError, match="^remove_ids: .* not trained"):
            index.remove_ids([1])
        index.train(x)
        assert index.remove_ids([1]) == 0


@pytest.mark.parametrize(
    "factory", ["Flat", "IVF16,Flat", "GMM16,Flat", "GMM16,PQ4x4fs", "PQ4x4"]
)
def test_what_is_filled_is_not_trained_again(factory: str, x: Floats) -> None:
    index = filled_with(factory, x)
    before = index.search(x[:50], 3)
    for again in (x * 3 + 1, iter([x]), (x * 9).astype(np.uint8)):
        with pytest.raises(ValueError, match="^ntotal = 1500, expected an em"):
            index.train(again)
    np.testing.assert_array_equal(index.search(x[:50], 3), before)


def in_a_subspace() -> Floats:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 8)) @ rng.normal(size=(8, 32))
    return (rows + 0.1 * rng.normal(size=rows.shape)).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    ("factory", "few"),
    [
        ("PCA8,GMM32,Flat", 31),
        ("OPQ4_16,GMM32,PQ4x4np", 31),
        ("PCA8,IVF32,Flat", 31),
        ("OPQ4_16,IVF512,Flat", 300),
        ("PCA8,IVF32,PQ4", 100),
        ("GMM32,PQ8x4fs,RFlat", 31),
        ("GMM8,PQ8x4fs", 12),
        ("ITQ16,IVF32,SQ8", 31),
        ("PCA16,IVF16,Flat,Refine(PQ16x6np)", 40),
        ("PCA8,GMM16,SQ8,Refine(PQ8)", 40),
        ("PCA16,GMM16,RaBitQ4,Refine(PQ8)", 40),
    ],
)
def test_a_train_that_is_refused_leaves_nothing_behind(
    factory: str, few: int, dtype: Any
) -> None:
    x = in_a_subspace().astype(dtype)
    other = np.random.default_rng(1).normal(size=(few, 32)).astype(dtype)
    found = []
    for refused in (False, True):
        index = faiss_ext.index_factory(32, factory)
        if refused:
            with pytest.raises(ValueError):
                index.train(other)
            assert not index.is_trained
        index.train(x)
        index.add(x)
        found.append(index.search(x[:100], 5))
    np.testing.assert_array_equal(found[1], found[0])


@pytest.mark.parametrize(
    "factory", ["IVF16,PQ8x4", "GMM16,Flat", "GMM16,PQ8x4"]
)
def test_a_clone_is_merged(factory: str, x: Floats) -> None:
    index = make(factory, x)
    other = faiss_ext.clone_index(index)
    index.add(x[:700])
    other.add(x[700:])
    index.merge_from(other, 700)
    assert index.ntotal == len(x) and other.ntotal == 0


@pytest.mark.parametrize(
    "factory", ["PCA8,GMM8,Flat", "GMM8,SQ8,RFlat", "Flat"]
)
def test_adding_nothing(factory: str, x: Floats) -> None:
    index = make(factory, x)
    index.add(iter([x[:10], x[:0], x[10:15]]))
    index.add(x[:0])
    assert index.ntotal == 15


@pytest.mark.parametrize(
    "factory",
    ["IVF16,Flat", "GMM16,PQ4x4fs", "GMM16,FlatDedup", "IVF16,PQ8x4np"],
)
def test_values_that_faiss_ends_on(factory: str, x: Floats) -> None:
    with pytest.raises(ValueError, match="not trained"):
        faiss_ext.index_factory(D, factory).add(x)
    index = filled_with(factory, x)
    bad = x[:20].copy()
    for value in (np.inf, 1e30):
        bad[7, 1] = value
        with pytest.raises(ValueError, match="row 7"):
            index.add(bad)
        with pytest.raises(ValueError, match="row 7"):
            index.search(bad, 1)
    assert index.ntotal == len(x)


@pytest.mark.parametrize("spec", ["IVF4,Flat", "IVF4,SQ8", "IVF4,PQ4np"])
def test_metrics_that_lists_do_not_have(spec: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 16)).astype(np.float32)
    index = faiss_ext.index_factory(16, spec, 2)  # L1
    index.train(x)
    index.add(x)
    for search in (
        lambda: index.search(x[:2], 2),
        lambda: index.range_search(x[:2], 1.0),
    ):
        try:
            search()
        except ValueError as error:
            assert "metric_type = 2" in str(error)  # noqa: PT017
