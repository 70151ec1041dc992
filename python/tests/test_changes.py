"""Ids, additions, removals, updates and merges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import faiss_ext
from conftest import Floats, make


def test_add_with_ids(trained: faiss_ext.Index, base: Floats) -> None:
    ids = np.arange(100) * 7 - 3
    trained.add_with_ids(base[:100], ids)
    trained.nprobe = trained.nlist
    np.testing.assert_array_equal(trained.assign(base[:100]), ids)


def test_remove_ids_by_array_range_mask_and_selector(
    filled: faiss_ext.Index,
) -> None:
    assert filled.remove_ids([5, 6, 7, 7, 999999]) == 3
    assert filled.remove_ids(range(10, 20)) == 10
    assert filled.remove_ids(range(20, 30, 5)) == 2
    mask = np.zeros(6000, bool)
    mask[100:150] = True
    assert filled.remove_ids(mask) == 50
    keep = faiss_ext.IDSelectorRange(0, 3000)
    assert filled.remove_ids(~keep) == 3000
    assert filled.ntotal == 6000 - 3 - 10 - 2 - 50 - 3000


def test_removed_vectors_are_not_found(
    filled: faiss_ext.Index, base: Floats
) -> None:
    filled.nprobe = filled.nlist
    filled.remove_ids([17])
    assert filled.assign(base[17:18])[0] != 17


@pytest.mark.parametrize("kind", ["array", "hashtable"])
def test_update_vectors_and_reconstruct(
    filled: faiss_ext.Index, base: Floats, kind: Any
) -> None:
    filled.set_direct_map(kind)
    assert filled.direct_map == kind
    filled.update_vectors([3, 4], base[:2] + 1)
    np.testing.assert_array_equal(filled.reconstruct(3), base[0] + 1)
    np.testing.assert_array_equal(filled.reconstruct(4), base[1] + 1)
    np.testing.assert_array_equal(
        filled.reconstruct_batch([5, 3]), [base[5], base[0] + 1]
    )


@pytest.mark.parametrize(
    "description",
    ["IVF16,Flat", "PCA32,IVF16,SQ8", "IVF16,PQ64x4", "GMM16,Flat"],
)
def test_a_map_of_ids_follows_additions(
    base: Floats, description: str
) -> None:
    index = faiss_ext.index_factory(128, description)
    index.train(base)
    index.set_direct_map("hashtable")
    index.add(base[:900])
    index.add(base[900:])
    everything = index.reconstruct_batch(np.arange(len(base)))
    index.set_direct_map("none")
    index.set_direct_map("hashtable")  # of what the lists hold
    np.testing.assert_array_equal(
        everything, index.reconstruct_batch(np.arange(len(base)))
    )


def test_a_map_of_ids_inside_another(base: Floats) -> None:
    index = faiss_ext.index_factory(128, "IDMap2,IVF16,Flat")
    index.train(base)
    index.set_direct_map("hashtable")
    ids = 3 * np.arange(len(base)) + 2
    index.add_with_ids(base[:900], ids[:900])
    index.add_with_ids(base[900:], ids[900:])
    copy = faiss_ext.clone_index(index)
    np.testing.assert_array_equal(copy.reconstruct_batch(ids), base)


def test_reconstruct_n(filled: faiss_ext.Index, base: Floats) -> None:
    np.testing.assert_array_equal(filled.reconstruct_n(), base)
    np.testing.assert_array_equal(filled.reconstruct_n(10, 5), base[10:15])
    out = np.empty((5, 128), np.float32)
    assert filled.reconstruct_n(10, 5, out) is out
    np.testing.assert_array_equal(out, base[10:15])


def test_merge_from_moves_vectors(
    trained: faiss_ext.Index, base: Floats, queries: Floats
) -> None:
    other = faiss_ext.clone_index(trained)
    trained.add(base[:5000])
    other.add(base[5000:6000])
    trained.merge_from(other, 5000)
    assert (trained.ntotal, other.ntotal) == (6000, 0)
    trained.nprobe = trained.nlist
    found = trained.assign(base[5500:5510])
    np.testing.assert_array_equal(found, np.arange(5500, 5510))


@pytest.mark.parametrize("name", ["PCA16,GMM16,Flat", "L2norm,GMM16,SQ8"])
def test_merge_from_behind_transformations(name: str, base: Floats) -> None:
    whole = make(name, base[:2000])
    other = faiss_ext.clone_index(whole)
    foreign = make(name, base[2000:4000])
    foreign.add(base[:2000])
    whole.add(base[:3000])
    other.add(base[3000:3500])
    whole.merge_from(other, 3000)
    assert (len(whole), len(other)) == (3500, 0)
    again = faiss_ext.deserialize_index(faiss_ext.serialize_index(whole))
    again.nprobe = again.nlist
    np.testing.assert_array_equal(
        again.assign(base[3100:3110]), np.arange(3100, 3110)
    )
    with pytest.raises(ValueError):
        whole.merge_from(foreign, 3500)
    assert (len(whole), len(foreign)) == (3500, 2000)


@pytest.mark.parametrize("name", ["GMM16,SQ8,RFlat", "IDMap,IVF16,Flat"])
def test_merge_from_through_other_wrappers_is_refused(
    name: str, base: Floats
) -> None:
    index, other = (make(name, base[:2000]) for _ in range(2))
    for one in (index, other):
        if name.startswith("IDMap"):
            one.add_with_ids(base[:2000], np.arange(2000))
        else:
            one.add(base[:2000])
    with pytest.raises(ValueError, match="merge_from"):
        index.merge_from(other, 2000)
    assert (len(index), len(other)) == (2000, 2000)
    assert index.search(base[:5], 3)[1].max() < 2000


@pytest.mark.parametrize(
    "name", ["IDMap,IVF16,Flat", "IDMap2,IVF16,Flat", "IDMap2,PCA8,IVF16,SQ8"]
)
def test_a_swap_leaves_maps_of_ids_out(name: str, base: Floats) -> None:
    x = base[:2000]
    ids = np.arange(2000) * 7 + 10**6
    index = make(name, x)
    index.add_with_ids(x, ids)
    with pytest.raises(ValueError, match="remove_ids.*swap_to_gmm"):
        index.remove_ids(ids[:100])
    swapped = faiss_ext.swap_to_gmm(index)
    assert "IDMap" not in swapped.factory_string
    assert swapped.remove_ids(ids[:100]) == 100
    swapped.nprobe = 16
    D, found = swapped.search(x[100:], 1)
    assert (found[:, 0] == ids[100:]).mean() > 0.99
    params = faiss_ext.SearchParameters(nprobe=16, sel=ids[500:600])
    assert np.isin(swapped.search(x[:5], 3, params=params)[1], ids).all()
    if "PCA" not in name and "IDMap2" in name:
        np.testing.assert_array_equal(swapped.reconstruct(ids[700]), x[700])


def test_a_map_that_faiss_left_wrong_is_named(base: Floats) -> None:
    faiss = pytest.importorskip("faiss")
    index = faiss.index_factory(base.shape[1], "IDMap,IVF16,Flat")
    index.train(base[:2000])
    index.add_with_ids(base[:2000], np.arange(2000) + 5)
    index.remove_ids(np.arange(100) + 5)
    with pytest.raises(ValueError, match="entry .* of an IndexIDMap"):
        faiss_ext.swap_to_gmm(index)


def test_a_range_of_ids_behind_a_map_is_an_error(base: Floats) -> None:
    index = make("IDMap,Flat", base[:2000])
    index.add_with_ids(base[:2000], np.arange(2000))
    with pytest.raises(ValueError):
        index.reconstruct_n(0, 2)
    index = make("IDMap2,Flat", base[:2000])
    index.add_with_ids(base[:2000], np.arange(2000) + 5)
    with pytest.raises(ValueError):
        index.reconstruct_n(0, 20)
    np.testing.assert_array_equal(index.reconstruct_n(5, 3), base[:3])
    behind = make("PCA8,IDMap2,Flat", base[:2000])
    behind.add_with_ids(base[:2000], np.arange(2000) + 5)
    with pytest.raises(ValueError):
        behind.reconstruct_n(0, 1500)


def test_what_faiss_crashes_at_is_an_error(base: Floats) -> None:
    d = base.shape[1]
    fast = faiss_ext.index_factory(d, f"GMM16,PQ{d // 2}x4fs")
    with pytest.raises(ValueError, match="not trained"):
        fast.search(base[:3], 3)
    fast.train(base)
    fast.add(base[:2000])
    version = faiss_ext.faiss_version.split(".")
    if (int(version[0]), int(version[1])) < (1, 15):
        with pytest.raises(ValueError, match="FastScan"):
            fast.search_and_reconstruct(base[:3], 3)
    additive = make("IVF16,RQ4x4", base)
    additive.add(base[:2000])
    params = faiss_ext.SearchParameters(nprobe=2, sel=range(100))
    with pytest.raises(ValueError, match="additive quantizer takes no sel"):
        additive.search(base[:3], 3, params=params)
