"""Dtypes, orders, maps and iterators: the same as float32 in C order."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas
import pytest
from numpy.typing import NDArray

import faiss_ext
from conftest import Floats
from faiss_ext import _arrays, _core, _filling

WAYS: dict[str, Callable[[NDArray[Any]], Any]] = {
    "float64": lambda x: x.astype(np.float64),
    "float16": lambda x: x.astype(np.float16),
    "uint8": lambda x: x.astype(np.uint8),
    "int32": lambda x: x.astype(np.int32),
    "int64": lambda x: x.astype(np.int64),
    "fortran": lambda x: np.asfortranarray(x),
    "strided": lambda x: np.repeat(x, 2, axis=0)[::2],
    "columns": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "reversed": lambda x: x[::-1].copy()[::-1],
    "big endian": lambda x: x.astype(">f4"),
    "list": lambda x: x.tolist(),
}


@pytest.mark.parametrize("way", WAYS)
def test_add_and_search_take(
    way: Any,
    trained: faiss_ext.Index,
    base: Floats,
    queries: Floats,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_arrays, "BLOCK_BYTES", 512 * 300)
    other = faiss_ext.clone_index(trained)
    trained.add(base[:900])
    other.add(WAYS[way](base[:900]))
    trained.nprobe = other.nprobe = 32
    expected = trained.search(queries, 5)
    got = other.search(WAYS[way](queries), 5)
    np.testing.assert_array_equal(got[1], expected[1])
    np.testing.assert_array_equal(got[0], expected[0])


@pytest.mark.parametrize("way", WAYS)
def test_add_with_ids_takes(
    way: Any,
    trained: faiss_ext.Index,
    base: Floats,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_arrays, "BLOCK_BYTES", 512 * 30)
    ids = np.arange(100) + 1000
    trained.add_with_ids(WAYS[way](base[:100]), ids)
    trained.nprobe = 32
    np.testing.assert_array_equal(trained.assign(base[:100]), ids)


@pytest.mark.parametrize("way", ["float64", "uint8", "fortran"])
def test_train_takes(way: Any, base: Floats) -> None:
    def train(x: NDArray[Any]) -> Any:
        index = faiss_ext.index_factory(128, "GMM8,Flat")
        index.cp.niter = 2
        index.train(x)
        return index.mixture().means

    np.testing.assert_array_equal(
        train(base[:2000]), train(WAYS[way](base[:2000]))
    )


def test_data_frames_of_nullable_columns(
    trained: faiss_ext.Index, base: Floats
) -> None:
    other = faiss_ext.clone_index(trained)
    trained.add(base[:500])
    frame = pandas.DataFrame(base[:500]).astype("Float32")
    frame[3] = frame[3].astype("Int64")  # whole numbers
    other.add(frame)
    np.testing.assert_array_equal(
        other.reconstruct_n(0, 500), trained.reconstruct_n(0, 500)
    )
    frame.iloc[7, 2] = pandas.NA
    with pytest.raises(
        faiss_ext.FaissError, match="x: row 7 has the value nan"
    ):
        other.add(frame)
    with pytest.raises(TypeError, match="x: dtype object"):
        other.add(pandas.DataFrame({i: ["a"] for i in range(128)}))


def test_masks_are_refused(trained: faiss_ext.Index, base: Floats) -> None:
    x = np.ma.masked_less(base[:900], 1)
    n = x.mask.sum()
    calls: list[Callable[[Any], Any]] = [
        trained.train,
        trained.add,
        lambda x: trained.add(iter([x])),
        lambda x: trained.add_with_ids(x, np.arange(900)),
        lambda x: trained.search(x, 1),
        lambda x: trained.search(list(x), 1),
        lambda x: faiss_ext.Kmeans(128, 8).train(x),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"x.*: {n:,} values are masked"):
            call(x)
    some = np.ma.masked_equal(np.arange(4), 1)
    with pytest.raises(ValueError, match="^sel: 1 values are masked"):
        faiss_ext.SearchParameters(sel=some)
    trained.add(np.ma.array(base[:900]))  # no value is
    assert trained.ntotal == 900


def test_float32_is_not_copied(base: Floats) -> None:
    assert _arrays.floats(base, "x") is base
    view = base[10:20]
    assert _arrays.floats(view, "x") is view


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.float16])
@pytest.mark.parametrize("mode", ["r", "r+", "c"])
def test_memmap(
    dtype: Any,
    mode: Any,
    trained: faiss_ext.Index,
    base: Floats,
    queries: Floats,
    tmp_path: pathlib.Path,
) -> None:
    path = tmp_path / "x.bin"
    base[:900].astype(dtype).tofile(path)
    x = np.memmap(path, dtype, mode, shape=(900, 128))
    index = faiss_ext.index_factory(128, "GMM8,Flat")
    index.cp.niter = 2
    index.train(x)
    assert index.is_trained
    trained.add(x)
    trained.nprobe = 32
    np.testing.assert_array_equal(trained.assign(base[:900]), np.arange(900))


def test_blocks_of_an_iterator(
    trained: faiss_ext.Index, base_u8: NDArray[np.uint8], queries: Floats
) -> None:
    whole = faiss_ext.clone_index(trained)
    whole.add(base_u8)
    blocks = (base_u8[i : i + 700] for i in range(0, 6000, 700))
    trained.add(blocks)
    assert trained.ntotal == 6000
    assert trained.calibration.fitted
    assert trained.calibrate_on_add
    trained.nprobe = whole.nprobe = 32
    np.testing.assert_array_equal(
        trained.search(queries, 10)[1], whole.search(queries, 10)[1]
    )


@pytest.mark.parametrize("calibrates", [True, False])
def test_blocks_in_the_same_memory(
    calibrates: bool, trained: faiss_ext.Index, base: Floats
) -> None:
    def read() -> Iterator[Floats]:
        buffer = np.empty((500, base.shape[1]), np.float32)
        for begin in range(0, 2000, 500):
            buffer[:] = base[begin : begin + 500]
            yield buffer
            buffer[:] = -1

    trained.calibrate_on_add = calibrates
    trained.add(read())
    np.testing.assert_array_equal(trained.reconstruct_n(0, 2000), base[:2000])
    assert trained.calibrate_on_add == calibrates
    assert trained.calibration.fitted == calibrates


def test_an_empty_iterator_adds_nothing(trained: faiss_ext.Index) -> None:
    trained.add(iter([]))
    assert trained.ntotal == 0


def test_training_on_blocks_of_an_iterator(base: Floats) -> None:
    index = faiss_ext.index_factory(128, "GMM8,Flat")
    index.cp.niter = 2
    index.train(base[i : i + 500] for i in range(0, 3000, 500))
    other = faiss_ext.index_factory(128, "GMM8,Flat")
    other.cp.niter = 2
    other.train(base[:3000])
    np.testing.assert_array_equal(index.mixture().means, other.mixture().means)


def test_reservoir_keeps_every_row_as_often() -> None:
    x = np.arange(400, dtype=np.float32).reshape(-1, 1)
    counts = np.zeros(400)
    for seed in range(500):
        kept = _arrays.sample_blocks(
            (x[i : i + 37] for i in range(0, 400, 37)), "x", 1, 40, seed
        )
        assert kept.shape == (40, 1)
        counts[kept[:, 0].astype(int)] += 1
    # 50 expected of each, with a deviation of 6.7
    assert counts.sum() == 500 * 40
    assert counts.min() > 50 - 5 * 6.7
    assert counts.max() < 50 + 5 * 6.7
    quarters = counts.reshape(4, 100).mean(axis=1)
    np.testing.assert_allclose(quarters, 50, atol=5 * 0.67)


def test_a_bad_block_is_named(trained: faiss_ext.Index, base: Floats) -> None:
    with pytest.raises(ValueError, match=r"x\[1\]: 5 columns"):
        trained.add(iter([base[:10], base[:10, :5], base[:10]]))


def test_what_speaks_dlpack(trained: faiss_ext.Index, base: Floats) -> None:
    class Tensor:
        def __init__(self, a: Any) -> None:
            self.a = a

        def __dlpack__(self, **options: Any) -> Any:
            return self.a.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.a.__dlpack_device__()

    trained.add(Tensor(base[:50].copy()))
    trained.nprobe = 32
    np.testing.assert_array_equal(
        trained.assign(Tensor(base[:50].copy())), np.arange(50)
    )


def test_what_numpy_cannot_read_is_named(trained: faiss_ext.Index) -> None:
    class BFloat16:  # torch's, of which numpy has none
        def __dlpack_device__(self) -> Any:
            return 1, 0

        def __dlpack__(self, **_: Any) -> Any:
            raise RuntimeError("Unsupported dtype")

    with pytest.raises(TypeError, match="x: a BFloat16 .*Unsupported dtype"):
        trained.search(BFloat16(), 1)


class OnDevice:
    """As an array of torch's or cupy's that is on a GPU; counts the rows that
    come from there."""

    copied = 0

    def __init__(self, x: NDArray[Any]) -> None:
        self.x = x

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0  # kDLCUDA

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Any) -> OnDevice:
        return OnDevice(self.x[rows])

    def cpu(self) -> NDArray[Any]:
        OnDevice.copied += len(self.x)
        return self.x


def test_what_is_on_a_device_is_sampled_there(
    base: Floats, queries: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_filling, "_CODEC_TRAINING", 100)
    monkeypatch.setattr(_arrays, "BLOCK_BYTES", 512 * 1000)
    monkeypatch.setattr(OnDevice, "copied", 0)
    index = faiss_ext.index_factory(128, "GMM8,Flat")
    index.cp.max_points_per_centroid = 50
    index.train(OnDevice(base))
    assert OnDevice.copied == 400
    index.add(OnDevice(base))
    assert OnDevice.copied == 400 + len(base)
    other = faiss_ext.clone_index(index)
    other.reset()
    other.add(base)
    # Lists that grew keep cells that were fitted before: whole lists.
    whole = faiss_ext.SearchParameters(nprobe=8, probe_order="distance")
    np.testing.assert_array_equal(
        index.search(OnDevice(queries), 5, params=whole)[1],
        other.search(queries, 5, params=whole)[1],
    )
    with pytest.raises(ValueError, match="x: 100 columns"):
        index.add(OnDevice(base[:, :100]))


def test_a_device_that_nothing_comes_from_is_named(base: Floats) -> None:
    class Stuck:
        def __dlpack_device__(self) -> tuple[int, int]:
            return 10, 0  # kDLROCM

        def __len__(self) -> int:
            return 50

    index = faiss_ext.index_factory(128, "GMM8,Flat")
    with pytest.raises(TypeError, match="x: a Stuck .* type 10"):
        index.train(Stuck())


def test_dask_arrays_come_block_by_block(base: Floats) -> None:
    da = pytest.importorskip("dask.array")
    x = da.from_array(base, chunks=(len(base) // 3 + 1, 50))
    index, other = (faiss_ext.index_factory(128, "GMM8,Flat") for _ in "12")
    index.train(x)
    index.add(x)
    other.train(iter([base]))
    other.add(base)
    np.testing.assert_array_equal(index.mixture()[0], other.mixture()[0])
    np.testing.assert_array_equal(index.reconstruct_n(), other.reconstruct_n())
    with pytest.raises(ValueError, match=r"x\[1\]: 64 columns"):
        index.add(iter([base[:5], x[:10, :64]]))
    with pytest.raises(ValueError, match="two dimensions"):
        index.add(x[0])


class Torch:
    """As a tensor of torch's: what is asked of it."""

    def __init__(
        self,
        x: Any,
        device: int = 2,
        dtype: str = "torch.float32",
        contiguous: bool = True,
    ) -> None:
        self.x = x
        self.device = device
        self.dtype = dtype
        self.contiguous = contiguous
        self.ndim, self.shape = np.ndim(x), np.shape(x)

    def __len__(self) -> int:
        return len(self.x)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def detach(self) -> Torch:
        return self

    def is_contiguous(self) -> bool:
        return self.contiguous


def test_what_is_read_on_a_device(
    base: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = _arrays.readable_on_device
    assert find(Torch(base)) is None or faiss_ext.cuda_available()
    monkeypatch.setattr(_core, "cuda_available", lambda: True)
    for dtype in ("torch.float32", "torch.float16", "torch.uint8"):
        x = Torch(base, dtype=dtype)
        assert find(x) is x and find(x, 128) is x
    for other in (
        base,
        Torch(base, device=1),
        Torch(base, device=10),
        Torch(base, dtype="torch.float64"),
        Torch(base, dtype="torch.bfloat16"),
        Torch(base, contiguous=False),
        Torch(base[:0]),
        Torch(base[0]),
    ):
        assert find(other) is None
    assert find(Torch(base), 64) is None


def gpu_tensor(x: NDArray[Any]) -> Any:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available() or not faiss_ext.cuda_available():
        pytest.skip("no GPU that both torch and faiss_ext can use")
    return torch.from_numpy(x).cuda()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.uint8])
def test_a_gpus_tensor_trains_as_its_copy_does(
    base: Floats, dtype: type[np.generic], monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.ascontiguousarray(base.astype(dtype))
    tensor = gpu_tensor(x)
    here = faiss_ext.index_factory(128, "GMM16,Flat")
    there = faiss_ext.index_factory(128, "GMM16,Flat")
    for index in here, there:
        index.cp.max_points_per_centroid = len(base)  # no sample
    here.train(x)
    monkeypatch.setattr(_arrays, "as_array", None)  # the way to the CPU
    there.train(tensor)
    assert there.backend == "cuda"
    for a, b in zip(here.mixture()[:3], there.mixture()[:3], strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_estimator_reads_a_gpus_tensor(base: Floats) -> None:
    pytest.importorskip("sklearn")
    tensor = gpu_tensor(base)
    options: dict[str, Any] = dict(
        n_components=8,
        means_init=base[:8],
        max_iter=5,
        tol=0.0,
        random_state=0,
    )
    with pytest.warns(Warning, match="did not converge"):
        here = faiss_ext.GaussianMixture(backend="cuda", **options).fit(base)
    with pytest.warns(Warning, match="did not converge"):
        there = faiss_ext.GaussianMixture(**options).fit(tensor)
    assert there.backend_ == "cuda"
    np.testing.assert_allclose(there.means_, here.means_, rtol=1e-4, atol=1e-2)
    np.testing.assert_array_equal(there.predict(tensor), there.predict(base))


def test_arrays_of_arrow(filled: faiss_ext.Index, queries: Floats) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    lists = pyarrow.FixedSizeListArray.from_arrays(
        queries.ravel(), queries.shape[1]
    )
    pandas = pytest.importorskip("pandas")
    for x in (lists, pandas.Series(list(queries))):
        with pytest.raises(TypeError, match=r"^x: \d+ arrays .*np.stack"):
            filled.search(x, 5)
        rows: Any = np.asarray(x)
        np.testing.assert_array_equal(
            filled.search(np.stack(rows), 5)[1],
            filled.search(queries, 5)[1],
        )
    mask = np.arange(filled.ntotal) % 3 == 0
    found = [
        filled.search(queries, 5, params=faiss_ext.SearchParameters(sel=sel))[
            1
        ]
        for sel in (mask, pyarrow.array(mask))
    ]
    np.testing.assert_array_equal(found[0], found[1])
