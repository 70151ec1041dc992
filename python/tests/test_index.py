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
