"""Files, bytes and pickles: the same results, to the bit."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pathlib
import pickle
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import faiss_ext
from conftest import Floats, fill, make

KINDS = [
    "GMM16,Flat",
    "GMM16_Diag,PQ16x4",
    "GMM16_Tied,SQ8",
    "PCA32,GMM16,Flat",
    "GMM16,PQ16x4,RFlat",
    "IDMap,GMM16,Flat",
    "GMM16_HNSW8,Flat",
    "IVF16,Flat",
    "Flat",
]


@pytest.fixture(scope="module", params=KINDS)
def any_kind(request: pytest.FixtureRequest, base: Floats) -> Any:
    index = make(request.param, base[:3000])
    fill(index, base[:3000])
    if index.has_mixture:
        index.target_recall = 0.9
    return index


def same(a: Any, b: Any, queries: Floats) -> None:
    assert repr(a) == repr(b)
    for mine, other in zip(
        a.search(queries, 10), b.search(queries, 10), strict=True
    ):
        np.testing.assert_array_equal(mine, other)


def test_files(any_kind: Any, queries: Floats, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "an index"
    faiss_ext.write_index(any_kind, path)
    same(any_kind, faiss_ext.read_index(path), queries)
    same(any_kind, faiss_ext.read_index(str(path)), queries)


def test_bytes(any_kind: Any, queries: Floats) -> None:
    data = faiss_ext.serialize_index(any_kind)
    assert data.dtype == np.uint8
    as_bytes = data.tobytes()
    for form in (data, as_bytes, bytearray(as_bytes), memoryview(as_bytes)):
        same(any_kind, faiss_ext.deserialize_index(form), queries)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickles(any_kind: Any, queries: Floats, protocol: Any) -> None:
    data = pickle.dumps(any_kind, protocol=protocol)
    same(any_kind, pickle.loads(data), queries)


def test_pickles_without_a_copy(any_kind: Any, queries: Floats) -> None:
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(any_kind, protocol=5, buffer_callback=buffers.append)
    assert len(data) < 1000
    same(any_kind, pickle.loads(data, buffers=buffers), queries)


def test_read_only_bytes(filled: faiss_ext.Index, queries: Floats) -> None:
    data = faiss_ext.serialize_index(filled)
    data.flags.writeable = False
    same(filled, faiss_ext.deserialize_index(data), queries)


def test_mapped_file(
    filled: faiss_ext.Index, queries: Floats, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "index"
    faiss_ext.write_index(filled, path)
    mapped = faiss_ext.read_index(path, faiss_ext.IO_FLAG_MMAP)
    same(filled, mapped, queries)
    with pytest.raises(ValueError, match="read-only"):
        mapped.add(queries)
    stock = SimpleNamespace(deserialize_index=bytes)  # in faiss's place

    def to_faiss(index: faiss_ext.Index) -> Any:
        return index.to_faiss(stock)

    for call in (pickle.dumps, faiss_ext.clone_index, to_faiss):
        with pytest.raises(ValueError, match="without IO_FLAG_MMAP"):
            call(mapped)


def test_numpy_saves_the_bytes(
    filled: faiss_ext.Index, queries: Floats
) -> None:
    file = io.BytesIO()
    np.save(file, faiss_ext.serialize_index(filled))
    file.seek(0)
    same(filled, faiss_ext.deserialize_index(np.load(file)), queries)


def _search(index: faiss_ext.Index, queries: Floats) -> Any:
    return index.search(queries, 3)[1]


def test_indexes_cross_to_other_processes(
    filled: faiss_ext.Index, queries: Floats
) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(_search, (filled, queries[:20]))
    np.testing.assert_array_equal(found, filled.search(queries[:20], 3)[1])


def test_clone_index(any_kind: Any, queries: Floats) -> None:
    same(any_kind, faiss_ext.clone_index(any_kind), queries)


@pytest.mark.parametrize(
    "factory", ["IVF8,Flat", "IDMap,IVF8,PQ4np", "GMM8,Flat"]
)
def test_copies_have_the_settings_of_searches(
    factory: str, base: Floats, queries: Floats
) -> None:
    index = make(factory, base[:1000])
    fill(index, base[:1000])
    index.nprobe, index.max_codes = 8, 7
    if "PQ4" in factory:
        index.set_parameters("ht=20")
    for copied in (
        faiss_ext.clone_index(index),
        copy.copy(index),
        copy.deepcopy(index),
    ):
        assert copied.max_codes == 7
        same(index, copied, queries)


def test_names_that_are_no_text(
    filled: faiss_ext.Index, tmp_path: pathlib.Path
) -> None:
    path: Any = os.fsencode(tmp_path) + b"/\xff.index"
    faiss_ext.write_index(filled, path)
    assert faiss_ext.read_index(path).ntotal == filled.ntotal
    with open(path, "wb") as file:
        file.write(b"junk" * 99)
    for call in (
        lambda: faiss_ext.read_index(path),
        lambda: faiss_ext.read_index(path + b"x"),
        lambda: faiss_ext.write_index(filled, path + b"/x"),
    ):
        with pytest.raises(faiss_ext.FaissError, match="\udcff.index.* .*"):
            call()


def test_what_is_no_module_of_faiss(filled: faiss_ext.Index) -> None:
    with pytest.raises(TypeError, match="^faiss = 3, expected the module"):
        filled.to_faiss(3)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork")
def test_forked_processes_search_and_train() -> None:
    program = """
import multiprocessing
import numpy as np
import faiss_ext
faiss_ext.omp_set_num_threads(2)
x = np.random.default_rng(0).normal(size=(5000, 16)).astype(np.float32)
def make(_):
    index = faiss_ext.index_factory(16, "GMM4,Flat")
    index.cp.niter = 2
    index.train(x)
    index.add(x)
    return index
index = make(0)
I = index.search(x, 3)[1]
def search(_):
    return index.search(x, 3)[1]
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert (pool.map(search, [0, 1])[0] == I).all()
    assert len(pool.map(make, [0])[0]) == len(x)
assert faiss_ext.omp_get_max_threads() == 2
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=200)
