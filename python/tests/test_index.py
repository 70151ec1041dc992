"""What an index does, against every distance there is."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest

import faiss_ext
from conftest import Floats, Ids, fill, make, recall


def test_factory_makes_an_untrained_index() -> None:
    index = faiss_ext.index_factory(16, "GMM8,Flat")
    assert (index.d, index.nlist, index.ntotal) == (16, 8, 0)
    assert not index.is_trained
    assert index.has_mixture
    assert index.factory_string == "GMM8,Flat"


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        ("GMM8,Flat", '"GMM8,Flat", 0 x 16, not trained, nprobe=1'),
        ("IVF8,Flat", '"IVF8,Flat", 0 x 16, not trained, nprobe=1'),
        ("Flat", '"Flat", 0 x 16'),
    ],
)
def test_repr_says_what_it_is(factory: str, text: str) -> None:
    assert text in repr(faiss_ext.index_factory(16, factory))


def test_repr_of_inner_product_and_target(filled: faiss_ext.Index) -> None:
    filled.target_recall = 0.9
    assert "6,000 x 128, target_recall=0.9" in repr(filled)
    index = faiss_ext.index_factory(
        4, "GMM8,Flat", faiss_ext.METRIC_INNER_PRODUCT
    )
    assert "inner product" in repr(index)


def test_len_is_ntotal_and_an_empty_index_is_true(
    trained: faiss_ext.Index, filled: faiss_ext.Index
) -> None:
    assert len(filled) == filled.ntotal == 6000
    assert len(trained) == 0
    assert trained


def test_searching_everything_is_exact(
    filled: faiss_ext.Index, queries: Floats, truth: Ids
) -> None:
    filled.nprobe = filled.nlist
    D, I = filled.search(queries, 10)
    assert D.dtype == np.float32 and I.dtype == np.int64
    assert D.shape == I.shape == (200, 10)
    assert recall(I, truth) == 1
    assert (np.diff(D, axis=1) >= 0).all()


def test_target_recall_is_reached(
    filled: faiss_ext.Index, queries: Floats, truth: Ids
) -> None:
    filled.target_recall = 0.9
    low = recall(filled.search(queries, 10)[1], truth)
    filled.target_recall = 0.99
    high = recall(filled.search(queries, 10)[1], truth)
    assert low > 0.8
    assert high > 0.95
    assert high >= low


def test_out_arrays_are_written(
    filled: faiss_ext.Index, queries: Floats
) -> None:
    D = np.empty((200, 5), np.float32)
    I = np.empty((200, 5), np.int64)
    got = filled.search(queries, 5, D=D, I=I)
    assert got[0] is D
    assert got[1] is I
    expected = filled.search(queries, 5)
    np.testing.assert_array_equal(I, expected[1])


def test_fewer_than_k_are_padded(
    trained: faiss_ext.Index, base: Floats
) -> None:
    trained.add(base[:3])
    trained.nprobe = trained.nlist
    D, I = trained.search(base[:1], 5)
    assert set(I[0][:3]) == {0, 1, 2}
    assert (I[0][3:] == -1).all()


def test_many_queries_are_the_same_as_one_at_a_time(
    filled: faiss_ext.Index, queries: Floats
) -> None:
    filled.nprobe = 4
    together = filled.search(queries, 10)[1]
    alone = [filled.search(q[None], 10)[1][0] for q in queries[:50]]
    assert recall(together[:50], np.array(alone)) > 0.999


def test_assign_gives_the_nearest_id(
    filled: faiss_ext.Index, queries: Floats, truth: Ids
) -> None:
    filled.nprobe = filled.nlist
    np.testing.assert_array_equal(filled.assign(queries), truth[:, 0])
    assert filled.assign(queries, 3).shape == (200, 3)


def test_range_search_finds_what_is_within(
    filled: faiss_ext.Index, queries: Floats, base: Floats
) -> None:
    filled.nprobe = filled.nlist
    q = queries[:20]
    distances = ((q[:, None, :] - base[None, :, :]) ** 2).sum(2)
    radius = float(np.quantile(distances, 0.001)) + 0.5
    lims, D, I = filled.range_search(q, radius)
    assert lims[0] == 0
    assert lims[-1] == len(D) == len(I)
    for i in range(20):
        found = set(I[lims[i] : lims[i + 1]])
        assert found == set(np.flatnonzero(distances[i] < radius))


def test_range_search_of_more_than_a_block(
    filled: faiss_ext.Index, queries: Floats
) -> None:
    filled.nprobe = 2
    q = np.tile(queries, (3, 1))
    lims, _, I = filled.range_search(q, 60000.0)
    once = filled.range_search(queries, 60000.0)
    np.testing.assert_array_equal(lims[:201], once[0])
    n = once[0][-1]
    assert lims[-1] == 3 * n
    assert sorted(I[:n]) == sorted(once[2])


def test_search_and_reconstruct(
    filled: faiss_ext.Index, queries: Floats, base: Floats
) -> None:
    D, I, R = filled.search_and_reconstruct(queries[:10], 4)
    np.testing.assert_array_equal(R[I >= 0], base[I[I >= 0]])
    np.testing.assert_array_equal(I, filled.search(queries[:10], 4)[1])


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


def test_reset_keeps_what_was_trained(filled: faiss_ext.Index) -> None:
    means = filled.mixture().means
    filled.reset()
    assert filled.ntotal == 0
    assert filled.is_trained
    np.testing.assert_array_equal(filled.mixture().means, means)


@pytest.mark.parametrize(
    ("name", "suffix", "shape"),
    [
        ("spherical", "", (16,)),
        ("diag", "_Diag", (16, 128)),
        ("tied_spherical", "_Tied", ()),
    ],
)
def test_mixture(base: Floats, name: Any, suffix: Any, shape: Any) -> None:
    index = make(f"GMM16{suffix},Flat", base[:4000])
    m = index.mixture()
    assert index.covariance_type == m.covariance_type == name
    assert m.means.shape == (16, 128)
    assert m.variances.shape == shape
    assert (m.variances > 0).all()
    assert m.weights.sum() == pytest.approx(1, abs=1e-4)


def test_covariance_type_is_set_before_training(base: Floats) -> None:
    index = faiss_ext.index_factory(128, "GMM16,Flat")
    index.covariance_type = "diag"
    index.train(base[:2000])
    assert index.mixture().variances.shape == (16, 128)
    with pytest.raises(ValueError, match="trained already"):
        index.covariance_type = "spherical"


def test_training_knobs_are_used(base: Floats) -> None:
    index = faiss_ext.index_factory(128, "GMM16,Flat")
    index.cp.niter = 3
    index.cp.seed = 7
    index.train(base)
    other = faiss_ext.index_factory(128, "GMM16,Flat")
    other.cp.niter = 3
    other.cp.seed = 8
    other.train(base)
    assert not np.array_equal(index.mixture().means, other.mixture().means)
    again = faiss_ext.index_factory(128, "GMM16,Flat")
    again.cp.niter = 3
    again.cp.seed = 7
    again.train(base)
    np.testing.assert_array_equal(index.mixture().means, again.mixture().means)


def test_optimize_keeps_the_vectors(
    filled: faiss_ext.Index, queries: Floats, truth: Ids
) -> None:
    filled.optimize()
    filled.nprobe = filled.nlist
    assert recall(filled.search(queries, 10)[1], truth) == 1


def test_set_parameters_by_string(filled: faiss_ext.Index) -> None:
    filled.set_parameters("nprobe=7,probe_mass=0.9,probe_order=codes")
    assert filled.nprobe == 7
    assert filled.probe_mass == pytest.approx(0.9)
    assert filled.probe_order == "codes"


def test_fields_read_and_write(trained: faiss_ext.Index) -> None:
    for name, value in [
        ("nprobe", 3),
        ("max_codes", 1000),
        ("probe_order", "distance"),
        ("cells_per_list", 1),
        ("max_assign", 2),
        ("assign_ratio", 1.5),
        ("assign_threshold", 0.25),
        ("calibrate_on_add", False),
        ("verbose", False),
    ]:
        setattr(trained, name, value)
        assert getattr(trained, name) == value
    assert trained.code_size == 512
    assert trained.backend == "cpu"


def test_list_sizes(filled: faiss_ext.Index) -> None:
    sizes = filled.list_sizes()
    assert sizes.shape == (32,)
    assert sizes.sum() == 6000


@pytest.mark.parametrize(
    "factory",
    [
        "GMM16,PQ16x4",
        "GMM16,SQ8",
        "PCA32,GMM16,Flat",
        "OPQ8_32,GMM16,PQ8x4",
        "GMM16,PQ16x4,RFlat",
        "IDMap,GMM16,Flat",
        "GMM16_HNSW8,Flat",
        "GMM16x4,Flat",
        "IVF16,Flat",
        "Flat",
    ],
)
def test_kinds_of_index(
    factory: str, base: Floats, queries: Floats, truth: Ids
) -> None:
    index = make(factory, base[:3000])
    fill(index, base)
    assert index.ntotal == 6000
    if index.has_mixture:
        index.target_recall = 0.9
        index.calibrate(queries[:100])
    elif factory.startswith("IVF"):
        index.nprobe = 8
    found = recall(index.search(queries, 10)[1], truth)
    least = 0.1 if "PQ" in factory else 0.5 if "PCA" in factory else 0.75
    assert found > least


def test_inner_product(base: Floats, queries: Floats) -> None:
    x = base[:5000] - base.mean(axis=0)
    q = queries - base.mean(axis=0)
    index = make("GMM16,Flat", x, faiss_ext.METRIC_INNER_PRODUCT)
    index.add(x)
    index.nprobe = 16
    D, I = index.search(q[:50], 1)
    exact = q[:50].astype(np.float64) @ x.T
    np.testing.assert_allclose(D[:, 0], exact.max(axis=1), rtol=1e-4)
    assert (exact.argmax(axis=1) == I[:, 0]).mean() > 0.98


def test_copies_are_separate(filled: faiss_ext.Index) -> None:
    for other in (copy.copy(filled), copy.deepcopy(filled)):
        other.remove_ids([1])
        assert (filled.ntotal, other.ntotal) == (6000, 5999)


def test_threads_search_at_once(
    filled: faiss_ext.Index, queries: Floats
) -> None:
    filled.nprobe = 4
    expected = filled.search(queries, 10)[1]
    results: list[np.ndarray] = []

    def work() -> None:
        for _ in range(3):
            results.append(filled.search(queries, 10)[1])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(results) == 12
    for r in results:
        np.testing.assert_array_equal(r, expected)


def test_other_python_threads_run_meanwhile(
    filled: faiss_ext.Index, base: Floats
) -> None:
    filled.nprobe = filled.nlist
    done = threading.Event()
    ticks = 0

    def work() -> None:
        filled.search(base[:3000], 100)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.wait(0.001):
        ticks += 1
    thread.join()
    assert ticks > 10


def test_k_factor_of_what_compares_again(
    base: Floats, queries: Floats, truth: Ids
) -> None:
    index = make("GMM32,PQ8np,RFlat", base)
    index.add(base)
    index.nprobe = 32
    assert index.k_factor == 1
    before = recall(index.search(queries, 10)[1], truth)
    index.k_factor = 20
    after = recall(index.search(queries, 10)[1], truth)
    assert before < 0.7 and after > before + 0.2
    with pytest.raises(ValueError, match="k_factor = 0.5"):
        index.k_factor = 0.5
    with pytest.raises(AttributeError, match="no RFlat"):
        _ = make("GMM8,Flat", base[:500]).k_factor


def test_a_calibration_says_what_it_is(filled: faiss_ext.Index) -> None:
    assert "of 6000 vectors" in repr(filled.calibration)
    choice = filled.calibration.choose(0.9)
    assert f"recall={choice.recall:.4f}" in repr(choice)
    assert "codes" in repr(choice) or "lists" in repr(choice)
