"""The ann-benchmarks module, run as that project's runner does it."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import pathlib
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import Floats, Ids, recall

FOLDER = (
    pathlib.Path(__file__).parents[2]
    / "bench"
    / "ann_benchmarks"
    / "faiss_ext"
)


class BaseANN:
    """The methods that the runner calls, with its arguments."""

    def done(self) -> None:
        pass

    def get_memory_usage(self) -> Any:
        return 0.0

    def fit(self, X: NDArray[Any]) -> None:
        pass

    def query(self, q: Any, n: Any) -> Any:
        return []

    def batch_query(self, X: NDArray[Any], n: Any) -> None:
        pass

    def get_batch_results(self) -> Any:
        return []

    def get_additional(self) -> Any:
        return {}

    name: str

    def __str__(self) -> str:
        return self.name


@pytest.fixture(scope="module")
def module() -> Iterator[Any]:
    names = (
        "ann_benchmarks",
        "ann_benchmarks.algorithms",
        "ann_benchmarks.algorithms.base",
        "ann_benchmarks.algorithms.base.module",
        "ann_benchmarks.algorithms.faiss_ext",
    )
    for name in names:
        made: Any = types.ModuleType(name)
        made.__path__ = []
        sys.modules[name] = made
    vars(sys.modules[names[3]])["BaseANN"] = BaseANN
    spec = importlib.util.spec_from_file_location(
        "ann_benchmarks.algorithms.faiss_ext.module", FOLDER / "module.py"
    )
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    yield loaded
    for name in names:
        del sys.modules[name]


def test_the_configuration_names_what_is_there(module: Any) -> None:
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load((FOLDER / "config.yml").read_text())
    (entry,) = config["float"]["any"]
    make: Any = getattr(module, entry["constructor"])
    assert BaseANN in make.__mro__
    args: Any = ()
    for group in entry["run_groups"].values():
        for args in itertools.product(*group["args"]):
            make("euclidean", *args)
        for query_args in itertools.product(*group["query_args"]):
            make("euclidean", *args).set_query_arguments(*query_args)


def test_the_signatures_are_the_base_classs(module: Any) -> None:
    for name in ("fit", "query", "batch_query", "get_batch_results"):
        ours = inspect.signature(getattr(module.FaissExtGMM, name)).parameters
        base = inspect.signature(getattr(BaseANN, name)).parameters
        assert len(ours) == len(base)


def test_a_run(module: Any, base: Floats, queries: Floats, truth: Ids) -> None:
    algorithm = module.FaissExtGMM("euclidean", "GMM16,Flat")
    algorithm.fit(base)
    algorithm.set_query_arguments("nprobe", 16)
    found = np.array([algorithm.query(q, 10) for q in queries[:20]])
    assert recall(found, truth[:20]) == 1
    algorithm.batch_query(queries, 10)
    assert recall(np.array(algorithm.get_batch_results()), truth) == 1
    assert algorithm.get_additional()["dist_comps"] > 0
    algorithm.set_query_arguments("target_recall", 0.9)
    assert "target_recall=0.9" in str(algorithm)
    algorithm.batch_query(queries, 10)
    assert recall(np.array(algorithm.get_batch_results()), truth) > 0.8
    algorithm.done()


def test_angular(module: Any, base: Floats, queries: Floats) -> None:
    algorithm = module.FaissExtGMM("angular", "GMM16,Flat")
    algorithm.fit(base)
    algorithm.set_query_arguments("nprobe", 16)
    unit = base / np.linalg.norm(base, axis=1, keepdims=True)
    exact = (queries[:20] @ unit.T).argmax(axis=1)
    found = [algorithm.query(q, 1)[0] for q in queries[:20]]
    assert (np.array(found) == exact).mean() > 0.9


def test_other_metrics_are_refused(module: Any) -> None:
    with pytest.raises(NotImplementedError, match="hamming"):
        module.FaissExtGMM("hamming", "GMM16,Flat")
