"""Wrong ids, maps, merges and blocks: named, and the index stays as it was."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import faiss_ext
from conftest import Floats, bad


def test_update_vectors(filled: faiss_ext.Index, base: Floats) -> None:
    with pytest.raises(ValueError, match="direct map"):
        filled.update_vectors([1], base[:1])
    filled.set_direct_map("hashtable")
    with pytest.raises(ValueError, match="99999"):
        filled.update_vectors([1, 99999], base[:2])
    np.testing.assert_array_equal(filled.reconstruct(1), base[1])
    with pytest.raises(ValueError, match=r"^ids\[1\] = 99999"):
        filled.update_vectors([1, 99999], base[:2])
    with pytest.raises(ValueError, match="^x: row 7 .* nan"):
        filled.update_vectors(np.arange(50), bad(base, "nan"))
    for wrong in ("tree", 3):
        with pytest.raises(ValueError, match=f"^type = {wrong!r}, expected"):
            filled.set_direct_map(wrong)  # type: ignore[arg-type]
    filled.remove_ids([7])
    with pytest.raises(ValueError, match='^type = "array", expected the ids'):
        filled.set_direct_map("array")
    assert filled.direct_map == "hashtable"


def test_reconstruct(filled: faiss_ext.Index) -> None:
    makes_one = r'no direct map; set_direct_map\("hashtable"\) makes one$'
    with pytest.raises(ValueError, match=f"^reconstruct: .* {makes_one}"):
        filled.reconstruct(3)
    filled.set_direct_map("hashtable")
    with pytest.raises(ValueError):
        filled.reconstruct(6000)
    with pytest.raises(ValueError, match="n0 = 5999"):
        filled.reconstruct_n(5999, 2)
    with pytest.raises(ValueError, match="n0 = -1"):
        filled.reconstruct_n(-1, 2)
    with pytest.raises(ValueError, match="ni"):
        filled.reconstruct_n(0, -2)
    with pytest.raises(ValueError, match=r"^x: shape \(5,\)"):
        filled.reconstruct(1, np.empty(5, np.float32))


@pytest.mark.parametrize(
    "factory", ["Flat", "PCA4,Flat", "GMM2,PQ4x4,RFlat", "SQ8", "HNSW8"]
)
def test_ids_that_are_places_are_checked(factory: str) -> None:
    x = np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32)
    index = faiss_ext.index_factory(8, factory)
    index.train(x)
    index.add(x)
    for wrong in (-1, 100, -(1 << 40), (1 << 63) - 1):
        with pytest.raises(
            ValueError, match=f"^key = {wrong}, expected .*100"
        ):
            index.reconstruct(wrong)
        with pytest.raises(
            ValueError, match=f"^key = {wrong}, expected .*100"
        ):
            index.reconstruct_batch([99, wrong])
        with pytest.raises(ValueError, match=f"^n0 = {wrong} and ni = 1, exp"):
            index.reconstruct_n(wrong, 1)
    np.testing.assert_allclose(
        index.reconstruct(99), index.reconstruct_n()[99]
    )


def test_ids_of_a_map_are_its_own() -> None:
    x = np.eye(8, dtype=np.float32)
    index = faiss_ext.index_factory(8, "IDMap2,Flat")
    index.add_with_ids(x, np.arange(8) + 100)
    np.testing.assert_array_equal(index.reconstruct(107), x[7])
    with pytest.raises(ValueError):
        index.reconstruct(7)


def test_merge_from(filled: faiss_ext.Index, base: Floats) -> None:
    with pytest.raises(ValueError, match="other"):
        filled.merge_from(filled)
    with pytest.raises(TypeError, match="other"):
        filled.merge_from("other")  # type: ignore[arg-type]
    other = faiss_ext.index_factory(128, "GMM32,Flat")
    other.cp.niter = 1
    other.cp.seed = 99
    other.train(base[:3000])
    other.add(base[:100])
    with pytest.raises(ValueError, match="means differ|should be the same"):
        filled.merge_from(other)
    assert (filled.ntotal, other.ntotal) == (6000, 100)
    flat = faiss_ext.index_factory(128, "Flat")
    with pytest.raises(ValueError):
        filled.merge_from(flat)


def test_remove_ids(filled: faiss_ext.Index) -> None:
    with pytest.raises(TypeError, match="ids"):
        filled.remove_ids(None)
    with pytest.raises(TypeError, match="ids"):
        filled.remove_ids("all")
    assert filled.ntotal == 6000


def test_a_direct_map_that_cannot_be_leaves_the_one_there_is(
    trained: faiss_ext.Index, base: Floats
) -> None:
    trained.add_with_ids(base[:100], np.arange(100) * 3 + 5)
    trained.set_direct_map("hashtable")
    with pytest.raises(ValueError):
        trained.set_direct_map("array")
    assert trained.direct_map == "hashtable"
    np.testing.assert_array_equal(trained.reconstruct(5), base[0])
    trained.update_vectors([8], base[:1])
    np.testing.assert_array_equal(trained.reconstruct(8), base[0])


def test_reconstruct_n_of_ids_that_are_not_there(
    trained: faiss_ext.Index, base: Floats
) -> None:
    trained.add_with_ids(base[:20], np.arange(20) + 7)
    np.testing.assert_array_equal(trained.reconstruct_n(7, 13), base[:13])
    with pytest.raises(ValueError, match="no vector with the id 6"):
        trained.reconstruct_n(6, 3)


def test_merge_from_says_whose_direct_map(
    trained: faiss_ext.Index, base: Floats
) -> None:
    trained.add(base[:100])
    other = faiss_ext.clone_index(trained)
    other.set_direct_map("hashtable")
    with pytest.raises(ValueError, match="^other: it has a direct map"):
        trained.merge_from(other)
    with pytest.raises(ValueError, match="this index: it has a direct map"):
        other.merge_from(trained)
    other.set_direct_map("none")
    trained.merge_from(other, add_id=100)
    assert len(trained) == 200 and len(other) == 0
    flat = faiss_ext.index_factory(128, "Flat")
    with pytest.raises(ValueError):
        trained.merge_from(flat)


def test_the_block_that_is_wrong_is_named(
    trained: faiss_ext.Index, base: Floats
) -> None:
    blocks = [base[:100], base[100:200], bad(base, "nan"), base[:3]]
    with pytest.raises(
        ValueError, match=r"x\[2\]: row 7 .*\(ntotal was 200\)"
    ):
        trained.add(iter(blocks))
    assert trained.ntotal == 200  # the blocks before it are in


@pytest.mark.parametrize("good", [1, 2])
def test_blocks_before_one_that_cannot_be_had_stay(
    good: int, trained: faiss_ext.Index, base: Floats
) -> None:
    blocks = [base[:100], base[100:200]][:good]
    with pytest.raises(
        ValueError,
        match=rf"^x\[{good}\]: 5 columns.* \(ntotal was {100 * good}\)$",
    ):
        trained.add(iter([*blocks, base[:9, :5]]))
    assert trained.ntotal == 100 * good and trained.calibrate_on_add

    def read() -> Iterator[Floats]:
        yield from blocks
        raise OSError("unplugged")

    with pytest.raises(OSError, match="unplugged"):
        trained.add(read())
    assert trained.ntotal == 200 * good
    np.testing.assert_array_equal(trained.reconstruct_n(0, 100), base[:100])


def test_what_is_in_is_said(base: Floats) -> None:
    index = faiss_ext.index_factory(128, "PCA8,GMM8,Flat")
    index.train(base)
    many = np.tile(base, (7, 1))
    many[40000, 3] = 3e38
    with pytest.raises(
        faiss_ext.FaissError, match="32768 of 42000 vectors are in, .* row 40"
    ):
        index.add(many)
    assert index.ntotal == 32768
