"""What searches find and cost, as an index learns it."""

from __future__ import annotations

import numpy as np
import pytest

import faiss_ext
from conftest import Floats, fill, make


def test_calibrate_on_queries(
    filled: faiss_ext.Index, queries: Floats
) -> None:
    assert filled.calibration.own_queries
    filled.calibrate(queries[:100], k=5)
    c = filled.calibration
    assert (c.fitted, c.k, c.nq, c.own_queries) == (True, 5, 100, False)
    assert 0 < c.farthest < 1e9
    assert c.ntotal == 6000
    choice = c.choose(0.9)
    assert choice.recall >= 0.9 - 1e-6
    assert choice.cost >= choice.distances > 0
    assert "codes" in c.report()
    for _, points in c.curves():
        recalls = [p.recall for p in points]
        assert recalls == sorted(recalls)


def test_calibrate_on_vectors_of_its_own(filled: faiss_ext.Index) -> None:
    filled.calibrate(nq=50, k=3)
    assert filled.calibration.own_queries
    assert (filled.calibration.k, filled.calibration.nq) == (3, 50)


def test_maintain_calibrates_what_has_grown(
    trained: faiss_ext.Index, base: Floats
) -> None:
    trained.add(base[:3000])
    for begin in range(3000, 6000, 500):
        trained.add(base[begin : begin + 500])
    assert trained.maintenance_due
    before = trained.calibration.ntotal
    trained.maintain()
    assert not trained.maintenance_due
    assert trained.calibration.ntotal == 6000 > before


def test_the_same_costs_choose_the_same_settings(
    base: Floats, queries: Floats
) -> None:
    def build(costs: faiss_ext.SearchCosts | None) -> faiss_ext.Index:
        index: faiss_ext.Index = make("GMM32,Flat", base)
        if costs is not None:
            index.search_costs = costs
        fill(index, base)
        index.target_recall = 0.9
        return index

    first = build(None)
    costs = first.search_costs
    assert min(costs.code, costs.distance, costs.scan) > 0
    second = build(costs)
    for (k, a), (m, b) in zip(
        first.calibration.curves(), second.calibration.curves(), strict=True
    ):
        assert k == m
        assert [repr(x) for x in a] == [repr(x) for x in b]
    np.testing.assert_array_equal(
        first.search(queries, 10)[1], second.search(queries, 10)[1]
    )
    # Where a code costs as much as a thousand distances, lists are compared.
    costs.code = 1000 * costs.scan
    assert not build(costs).calibration.choose(0.9).by_codes


def test_costs_that_cannot_be(trained: faiss_ext.Index) -> None:
    before = repr(trained.search_costs)
    costs = trained.search_costs
    for wrong in (-1, float("nan"), float("inf")):
        costs.scan = wrong
        with pytest.raises(
            faiss_ext.FaissError, match="search_costs: .*at le"
        ):
            trained.search_costs = costs
    with pytest.raises(TypeError, match="search_costs = 3, expected a Search"):
        trained.search_costs = 3  # type: ignore[assignment]
    assert repr(trained.search_costs) == before
    with pytest.raises(AttributeError, match="search_costs"):
        _ = faiss_ext.index_factory(8, "IVF4,Flat").search_costs
