"""faiss_ext's indexes as ann-benchmarks runs them."""

import numpy as np

import faiss_ext

from ..base.module import BaseANN


class FaissExtGMM(BaseANN):
    """An index by factory string; queries by nprobe or target_recall."""

    def __init__(self, metric, factory):
        if metric not in ("euclidean", "angular"):
            raise NotImplementedError(f"faiss_ext has no metric {metric}")
        self._metric = metric
        self._factory = factory
        self._params = None
        self._results = None
        self.index = None
        self.name = f"FaissExtGMM({factory})"

    def _vectors(self, X):
        X = np.ascontiguousarray(X, dtype=np.float32)
        if self._metric == "angular":
            norms = np.linalg.norm(X, axis=1, keepdims=True)
            X = X / np.maximum(norms, np.finfo(np.float32).tiny)
        return X

    def fit(self, X):
        X = self._vectors(X)
        metric = (
            faiss_ext.METRIC_L2
            if self._metric == "euclidean"
            else faiss_ext.METRIC_INNER_PRODUCT
        )
        self.index = faiss_ext.index_factory(X.shape[1], self._factory, metric)
        self.index.train(X)
        self.index.add(X)

    def set_query_arguments(self, name, value):
        self._params = faiss_ext.SearchParameters(**{name: value})
        self.name = f"FaissExtGMM({self._factory}, {name}={value})"

    def query(self, v, n):
        return self._search(np.asarray(v)[np.newaxis], n)[0]

    def batch_query(self, X, n):
        self._results = self._search(X, n)

    def get_batch_results(self):
        return [ids[ids >= 0] for ids in self._results]

    def _search(self, X, n):
        return self.index.search(self._vectors(X), n, params=self._params)[1]

    def get_additional(self):
        stats = faiss_ext.search_stats()
        return {"dist_comps": stats["ndis"]}

    def __str__(self):
        return self.name
