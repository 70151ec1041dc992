"""Files of vectors: what was written is read, and what is wrong is named."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from faiss_ext import _files


@pytest.fixture(scope="module")
def x() -> Any:
    return np.random.default_rng(0).integers(0, 200, (700, 12))


def write_bin(path: Any, x: NDArray[Any]) -> None:
    with open(path, "wb") as f:
        np.array(x.shape, np.uint32).tofile(f)
        x.tofile(f)


def write_vecs(path: Any, x: NDArray[Any]) -> None:
    with open(path, "wb") as f:
        for row in x:
            np.array([len(row)], np.int32).tofile(f)
            row.tofile(f)


def write_hdf5(path: Any, x: NDArray[Any]) -> None:
    import h5py

    with h5py.File(path, "w") as f:
        f["train"] = x
        f["test"] = x[:5]


def write_parquet(path: Any, x: NDArray[Any]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"id": np.arange(len(x)), "v": list(x)})
    pq.write_table(table, path, row_group_size=100)


WRITERS: dict[str, tuple[Any, Any]] = {
    "x.fbin": (write_bin, np.float32),
    "x.u8bin": (write_bin, np.uint8),
    "x.i8bin": (write_bin, np.int8),
    "x.ibin": (write_bin, np.int32),
    "x.fvecs": (write_vecs, np.float32),
    "x.bvecs": (write_vecs, np.uint8),
    "x.ivecs": (write_vecs, np.int32),
    "x.npy": (np.save, np.float64),
    "x.hdf5": (write_hdf5, np.float32),
    "x.parquet": (write_parquet, np.float32),
}


@pytest.fixture(params=WRITERS)
def written(
    request: pytest.FixtureRequest, x: NDArray[Any], tmp_path: pathlib.Path
) -> Any:
    write, dtype = WRITERS[request.param]
    if request.param.endswith("hdf5"):
        pytest.importorskip("h5py")
    if request.param.endswith("parquet"):
        pytest.importorskip("pyarrow")
    rows = np.ascontiguousarray(x.astype(dtype))
    write(tmp_path / request.param, rows)
    return tmp_path / request.param, rows


def test_what_was_written_is_read(written: Any) -> None:
    path, rows = written
    vectors = _files.open_vectors(path)
    assert (vectors.n, vectors.d) == (700, 12)
    assert vectors.dtype == rows.dtype
    np.testing.assert_array_equal(vectors.array(), rows)
    blocks = list(vectors.blocks(64))
    assert max(len(b) for b in blocks) <= 64
    np.testing.assert_array_equal(np.concatenate(blocks), rows)


def test_a_truncated_file_is_named(written: Any) -> None:
    path, _ = written
    data = path.read_bytes()
    path.write_bytes(data[:-3])
    with pytest.raises(ValueError, match=r"x\."):
        _files.open_vectors(path).array()


def test_an_empty_file_is_named(written: Any) -> None:
    path, _ = written
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"x\."):
        _files.open_vectors(path)


def test_parts_by_name(x: NDArray[Any], tmp_path: pathlib.Path) -> None:
    pytest.importorskip("h5py")
    pytest.importorskip("pyarrow")
    write_hdf5(tmp_path / "x.hdf5", x)
    assert _files.open_vectors(tmp_path / "x.hdf5", "test").n == 5
    assert _files.open_vectors(f"{tmp_path}/x.hdf5:test").n == 5
    with pytest.raises(ValueError, match="'queries'"):
        _files.open_vectors(f"{tmp_path}/x.hdf5:queries")
    import h5py

    with h5py.File(tmp_path / "x.hdf5", "a") as f:
        f.create_group("group")
    with pytest.raises(ValueError, match="'group' has shape None"):
        _files.open_vectors(f"{tmp_path}/x.hdf5:group")
    write_parquet(tmp_path / "x.parquet", x.astype(np.float32))
    assert _files.open_vectors(f"{tmp_path}/x.parquet:v").d == 12
    with pytest.raises(ValueError, match="'w'"):
        _files.open_vectors(f"{tmp_path}/x.parquet:w")
    with pytest.raises(ValueError, match="x.parquet: no column 'id' of list"):
        _files.open_vectors(f"{tmp_path}/x.parquet:id")


def test_parquet_lists_of_different_lengths(tmp_path: pathlib.Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    for odd in ([[1.0]], [[1.0], [1.0, 2.0, 3.0]]):  # also as many in all
        pq.write_table(
            pa.table({"v": [[1.0, 2.0]] * 5 + odd}), tmp_path / "x.parquet"
        )
        with pytest.raises(ValueError, match=r"x\.parquet: .*different"):
            _files.open_vectors(tmp_path / "x.parquet").array()


def test_rows_of_fvecs_are_of_one_length(tmp_path: pathlib.Path) -> None:
    rows = np.zeros(5, [("d", np.int32), ("x", np.float32, (4,))])
    rows["d"] = 4
    rows["d"][3] = 5
    rows.tofile(tmp_path / "x.fvecs")
    with pytest.raises(ValueError, match=r"x\.fvecs: row 3 has 5 values"):
        _files.open_vectors(tmp_path / "x.fvecs")


def test_what_is_written_keeps_links_and_modes(
    x: NDArray[Any], tmp_path: pathlib.Path
) -> None:
    real, link = tmp_path / "real.npy", tmp_path / "link.npy"
    real.write_bytes(b"old")
    real.chmod(0o600)
    link.symlink_to(real)
    _files.write_matrix(link, x)
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600
    np.testing.assert_array_equal(np.load(real), x)
    with pytest.raises(RuntimeError):
        with _files.replacing(link) as file:
            file.write(b"half")
            raise RuntimeError
    np.testing.assert_array_equal(np.load(real), x)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "link.npy",
        "real.npy",
    ]


def test_other_files(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="x.txt"):
        _files.open_vectors(tmp_path / "x.txt")
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(IsADirectoryError, match="folder.npy: a folder"):
        _files.open_vectors(tmp_path / "folder.npy")
    with pytest.raises(FileNotFoundError, match="x.fbin"):
        _files.open_vectors(tmp_path / "x.fbin")
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(ValueError, match="two dimensions"):
        _files.open_vectors(tmp_path / "x.npy")


@pytest.mark.parametrize("ending", [".npy", ".fbin", ".ibin"])
def test_write_matrix(
    ending: Any, x: NDArray[Any], tmp_path: pathlib.Path
) -> None:
    if ending != ".ibin":
        x = x.astype(np.float32)
    _files.write_matrix(tmp_path / ("y" + ending), x)
    read = _files.open_vectors(tmp_path / ("y" + ending)).array()
    np.testing.assert_array_equal(read, x)


def test_write_matrix_refuses(x: NDArray[Any], tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="y.txt"):
        _files.write_matrix(tmp_path / "y.txt", x)
    with pytest.raises(ValueError, match=r"y.fbin: .* in \.npy or \.ibin"):
        _files.write_matrix(tmp_path / "y.fbin", x)
    with pytest.raises(ValueError, match=r"y.ibin: .* in \.npy or \.fbin"):
        _files.write_matrix(tmp_path / "y.ibin", x.astype(np.float32))
    with pytest.raises(ValueError, match="int32"):
        _files.write_matrix(tmp_path / "y.ibin", x + 2**40)
    with pytest.raises(ValueError, match="int32"):
        _files.write_matrix(tmp_path / "y.ibin", x - 2**40)


def write_npy(path: pathlib.Path, header: str) -> None:
    size = len(header).to_bytes(2, "little")
    path.write_bytes(
        b"\x93NUMPY\x01\x00" + size + header.encode() + bytes(640)
    )


@pytest.mark.parametrize(
    "shape",
    ["(-5, 16)", f"({10**21}, 16)", f"({2**62}, 4)", "(True, 16)", "(5, 16"],
)
@pytest.mark.filterwarnings("error")
def test_headers_of_npy_are_damaged(
    shape: str, tmp_path: pathlib.Path
) -> None:
    end = ", }" if shape.endswith(")") else ""
    write_npy(
        tmp_path / "x.npy",
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}{end}",
    )
    with pytest.raises(ValueError, match=r"/x\.npy: [^\n]+\Z"):
        _files.open_vectors(tmp_path / "x.npy")


def test_npz_is_no_npy(x: NDArray[Any], tmp_path: pathlib.Path) -> None:
    with open(tmp_path / "x.npy", "wb") as file:
        np.savez(file, x=x)
    with pytest.raises(ValueError, match=r"/x\.npy: .*magic"):
        _files.open_vectors(tmp_path / "x.npy")


def test_links_of_hdf5_lead_nowhere(tmp_path: pathlib.Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "x.hdf5", "w") as f:
        f["train"] = h5py.SoftLink("/nothing")
        f["test"] = h5py.ExternalLink("none.hdf5", "/x")
    for part in ("train", "test"):
        with pytest.raises(ValueError, match=r"/x\.hdf5: [^\n]+\Z"):
            _files.open_vectors(tmp_path / "x.hdf5", part)


def test_damaged_chunks_are_named(tmp_path: pathlib.Path) -> None:
    h5py = pytest.importorskip("h5py")
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    noise = np.random.default_rng(0).standard_normal((3000, 16))
    with h5py.File(tmp_path / "x.hdf5", "w") as f:
        f.create_dataset(
            "train", data=noise, chunks=(100, 16), compression="gzip"
        )
    pq.write_table(
        pa.table({"v": list(noise)}),
        tmp_path / "x.parquet",
        compression="zstd",
        row_group_size=1000,
    )
    for name in ("x.hdf5", "x.parquet"):
        data = bytearray((tmp_path / name).read_bytes())
        middle = len(data) // 2
        data[middle : middle + 4000] = bytes(4000)
        (tmp_path / name).write_bytes(data)
        vectors = _files.open_vectors(tmp_path / name)
        with pytest.raises(ValueError, match=rf"/{name}: [^\n]+\Z"):
            vectors.array()
