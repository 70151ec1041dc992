"""Gaussian mixtures where FAISS's IVF indexes use k-means.

    import faiss_ext

    index = faiss_ext.index_factory(d, "GMM1024,Flat")
    index.train(x)
    index.add(x)
    index.target_recall = 0.95
    D, I = index.search(queries, 10)

An IVF index of faiss's is swapped in one call: `swap_to_gmm`. The mixture
alone is `GaussianMixture`, a scikit-learn estimator.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ._core import (
    IO_FLAG_MMAP,
    IO_FLAG_ONDISK_SAME_DIR,
    IO_FLAG_READ_ONLY,
    METRIC_INNER_PRODUCT,
    METRIC_L2,
    Calibration,
    ClusteringParameters,
    FaissError,
    SearchCosts,
    __version__,
    cuda_available,
    faiss_version,
    omp_get_max_threads,
    omp_set_num_threads,
    reset_stats,
    why_no_cuda,
)
from ._core import stats as search_stats
from ._factory import (
    clone_index,
    from_faiss,
    index_factory,
    read_index,
    serialize_index,
    swap_to_gmm,
    write_index,
)
from ._index import Index, Mixture, deserialize_index
from ._kmeans import Kmeans
from ._selectors import (
    IDSelector,
    IDSelectorBatch,
    IDSelectorBitmap,
    IDSelectorRange,
    SearchParameters,
)

if TYPE_CHECKING:
    from ._estimator import GaussianMixture

__all__ = [
    "IO_FLAG_MMAP",
    "IO_FLAG_ONDISK_SAME_DIR",
    "IO_FLAG_READ_ONLY",
    "METRIC_INNER_PRODUCT",
    "METRIC_L2",
    "Calibration",
    "ClusteringParameters",
    "FaissError",
    "GaussianMixture",
    "IDSelector",
    "IDSelectorBatch",
    "IDSelectorBitmap",
    "IDSelectorRange",
    "Index",
    "Kmeans",
    "Mixture",
    "SearchCosts",
    "SearchParameters",
    "__version__",
    "clone_index",
    "cuda_available",
    "deserialize_index",
    "faiss_version",
    "from_faiss",
    "index_factory",
    "omp_get_max_threads",
    "omp_set_num_threads",
    "read_index",
    "reset_stats",
    "search_stats",
    "serialize_index",
    "swap_to_gmm",
    "why_no_cuda",
    "write_index",
]


if hasattr(os, "register_at_fork"):
    # OpenMP's threads are not in the child, which would wait for them.
    os.register_at_fork(after_in_child=lambda: omp_set_num_threads(1))


if not TYPE_CHECKING:  # to a checker any name would be there

    def __getattr__(name: str) -> Any:
        # scikit-learn is not needed for anything else, and slow to import.
        if name == "GaussianMixture":
            from ._estimator import GaussianMixture

            return GaussianMixture
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
