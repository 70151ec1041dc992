"""Training, building and searching on a cluster of processes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time

import numpy as np
import pytest

from conftest import recall

pytest.importorskip("sklearn")
distributed = pytest.importorskip("distributed")
da = pytest.importorskip("dask.array")

import faiss_ext  # noqa: E402
from faiss_ext import GaussianMixture  # noqa: E402
from faiss_ext import dask as fdask  # noqa: E402

OPTIONS = dict(
    covariance_type="diag", max_iter=4, tol=0, random_state=0, block_rows=700
)


@pytest.fixture(scope="module")
def cluster():
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
        ) as made,
        distributed.Client(made),
    ):
        yield made


@pytest.fixture(scope="module")
def alone(base):
    """What one process fits."""
    import dask

    with dask.config.set(scheduler="synchronous"):
        return fdask.fit(da.from_array(base, chunks=(999, 64)), 6, **OPTIONS)


def same_bits(a, b):
    for name in ("means_", "covariances_", "weights_"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.lower_bounds_ == b.lower_bounds_


def test_is_the_estimators_fit(base, alone):
    start = dict(
        means_init=alone.means_,
        weights_init=alone.weights_,
        precisions_init=alone.precisions_,
    )
    import dask

    options = {**OPTIONS, **start}
    with dask.config.set(scheduler="synchronous"):
        a = fdask.fit(da.from_array(base), 6, **options)
    del options["block_rows"]
    b = GaussianMixture(6, **options).fit(base)
    np.testing.assert_allclose(a.means_, b.means_, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(a.covariances_, b.covariances_, rtol=1e-3)
    assert a.lower_bound_ == pytest.approx(b.lower_bound_, rel=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_same_bits_whatever_the_workers(cluster, base, alone):
    x = da.from_array(base, chunks=(1234, 128))
    same_bits(fdask.fit(x, 6, **OPTIONS), alone)


@pytest.mark.filterwarnings("ignore")
def test_the_same_bits_from_files(cluster, base, alone, tmp_path):
    paths = []
    for i, part in enumerate(np.array_split(base, [1000, 1500, 4444])):
        paths.append(tmp_path / f"{i}.npy")
        np.save(paths[-1], part)
    same_bits(fdask.fit(paths, 6, **OPTIONS), alone)


@pytest.mark.filterwarnings("ignore")
def test_the_same_bits_when_a_worker_dies(cluster, base, alone):
    x = da.from_array(base, chunks=(700, 128))
    killed = threading.Event()

    def kill() -> None:
        time.sleep(0.3)
        worker = next(iter(cluster.workers.values()))
        os.kill(worker.pid, signal.SIGKILL)
        killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    fits = [fdask.fit(x, 6, **OPTIONS)]
    thread.join()
    assert killed.is_set()
    fits.append(fdask.fit(x, 6, **OPTIONS))
    for fitted in fits:
        same_bits(fitted, alone)


@pytest.mark.filterwarnings("ignore")
def test_a_nan_is_named_by_file_and_row(cluster, base, tmp_path):
    x = base[:1500].copy()
    x[903, 5] = np.nan
    np.save(tmp_path / "bad.npy", x)
    with pytest.raises(ValueError, match="bad.npy, rows from 700: row 203"):
        fdask.fit([tmp_path / "bad.npy"], 3, **OPTIONS)


def test_wrong_input(base, tmp_path):
    with pytest.raises(ValueError, match="two known dimensions"):
        fdask.fit(da.zeros(5), 2)
    with pytest.raises(ValueError, match="no files"):
        fdask.fit([], 2)
    np.save(tmp_path / "a.npy", base[:10])
    np.save(tmp_path / "b.npy", base[:10, :5])
    with pytest.raises(ValueError, match="b.npy: 5 columns"):
        fdask.fit([tmp_path / "a.npy", tmp_path / "b.npy"], 2)
    with pytest.raises(ValueError, match="10 rows"):
        fdask.fit([tmp_path / "a.npy"], 20)


@pytest.fixture(scope="module")
def built(cluster, base, tmp_path_factory):
    return fdask.build(
        da.from_array(base, chunks=(800, 128)),
        "GMM16,Flat",
        tmp_path_factory.mktemp("shards"),
        block_rows=700,
        shard_rows=2100,
    )


def test_the_manifest_says_what_there_is(built):
    manifest = json.loads(built.read_text())
    assert manifest["ntotal"] == 6000
    assert [s["begin"] for s in manifest["shards"]] == [0, 2100, 4200]
    assert sum(s["rows"] for s in manifest["shards"]) == 6000
    assert not list(built.parent.glob("*.partial"))


@pytest.mark.parametrize("nprobe", [1, 3, 16])
def test_shards_find_what_one_index_finds(built, base, queries, nprobe):
    whole = faiss_ext.read_index(built.parent / "trained.index")
    whole.add(base)
    params = faiss_ext.SearchParameters(nprobe=nprobe, probe_order="distance")
    D, I = whole.search(queries, 10, params=params)
    D2, I2 = fdask.search(built, queries, 10, nprobe=nprobe)
    np.testing.assert_allclose(D2, D, rtol=1e-5)
    assert recall(I2, I) > 0.999


def test_merged_shards_are_one_index(built, queries, truth):
    index = fdask.merge(built)
    assert index.ntotal == 6000
    assert index.calibration.fitted
    index.nprobe = 16
    assert recall(index.search(queries, 10)[1], truth) == 1


def test_damaged_and_missing_shards_are_refused(built, queries, tmp_path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(built.parent, folder)
    shard = folder / "shard00001.index"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    for call in (
        lambda: fdask.merge(folder / "manifest.json"),
        lambda: fdask.search(folder / "manifest.json", queries, 3, nprobe=2),
    ):
        with pytest.raises(ValueError, match="shard00001.index: its checksum"):
            call()
    shard.unlink()
    with pytest.raises(FileNotFoundError, match="shard00001.index"):
        fdask.merge(folder / "manifest.json")
    (folder / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="format 99"):
        fdask.merge(folder / "manifest.json")
