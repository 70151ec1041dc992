"""Searching among some ids only, and vectors that come and go."""

import numpy as np

import faiss_ext

x = np.random.default_rng(0).normal(size=(8000, 32)).astype(np.float32)
index = faiss_ext.index_factory(32, "GMM32,Flat")
index.train(x)
index.add_with_ids(x, np.arange(8000) * 10)

recent = faiss_ext.IDSelectorRange(70000, 80000)
params = faiss_ext.SearchParameters(sel=recent, nprobe=32)
D, I = index.search(x[:4], 5, params=params)
assert (I >= 70000).all()

index.remove_ids(np.arange(100) * 10)
index.set_direct_map("hashtable")
index.update_vectors([1000], x[:1])
index.nprobe = 8
assert index.search(x[:1], 1)[1][0, 0] == 1000
print(index)
