"""Vectors in a mapped file of bytes, added in blocks."""

import pathlib
import tempfile

import numpy as np

import faiss_ext

rng = np.random.default_rng(0)
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "base.u8"
    rng.integers(0, 256, (20000, 32), np.uint8).tofile(path)

    x = np.memmap(path, np.uint8, "r", shape=(20000, 32))
    index = faiss_ext.index_factory(32, "GMM64,SQ8")
    index.train(x)
    index.add(x[i : i + 5000] for i in range(0, len(x), 5000))
    index.target_recall = 0.9
    D, I = index.search(x[:5], 3)
    print(index, I.tolist())
    assert (I[:, 0] == np.arange(5)).all()
