"""An IVF index of faiss's, swapped: the same vectors, fewer distances."""

import faiss
import numpy as np

import faiss_ext

rng = np.random.default_rng(0)
centers = rng.normal(size=(200, 64))
x = centers[rng.integers(200, size=20000)] + 0.4 * rng.normal(size=(20000, 64))
x = x.astype(np.float32)
queries, x = x[:500], x[500:]

old = faiss.index_factory(64, "IVF64,Flat")
old.train(x)
old.add(x)
old.nprobe = 64
_, truth = old.search(queries, 10)

new = faiss_ext.swap_to_gmm(old)
new.calibrate(queries[:250], k=10)
new.target_recall = 0.95
faiss_ext.reset_stats()
_, found = new.search(queries[250:], 10)
hits = np.mean(
    [np.isin(f, t).mean() for f, t in zip(found, truth[250:], strict=True)]
)
distances = faiss_ext.search_stats()["ndis"] / 250
print(f"{new!r}: recall {hits:.3f} by {distances:.0f} distances a query")
assert hits > 0.9
