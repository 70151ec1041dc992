"""Wrong input to what runs on a cluster, told in this process."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from conftest import Floats

pytest.importorskip("sklearn")
da = pytest.importorskip("dask.array")

import dask.config  # noqa: E402

import faiss_ext  # noqa: E402
from faiss_ext import _dask_search, _dask_shards  # noqa: E402
from faiss_ext import dask as fdask  # noqa: E402
from faiss_ext._dask_rows import Rows, as_block  # noqa: E402


@pytest.fixture(scope="module", autouse=True)
def here() -> Iterator[None]:
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.fixture(scope="module")
def built(base: Floats, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fdask.build(
        da.from_array(base, chunks=(800, 128)),
        "GMM16,Flat",
        tmp_path_factory.mktemp("shards"),
        block_rows=700,
        shard_rows=2100,
    )


@pytest.fixture
def merged(built: Any, tmp_path: pathlib.Path) -> Any:
    """The manifest of a copy that is merged on disk, the test's own."""
    folder = tmp_path / "merged"
    shutil.copytree(built.parent, folder)
    fdask.merge(folder / "manifest.json", on_disk=True)
    return folder / "manifest.json"


def test_a_file_that_shrinks_is_named(
    base: Floats, tmp_path: pathlib.Path
) -> None:
    np.save(tmp_path / "long.npy", base[:1500])
    block = Rows(tmp_path / "long.npy", 700).blocks[-1]
    np.testing.assert_array_equal(as_block(block), base[1400:1500])
    np.save(tmp_path / "long.npy", base[:1450])
    with pytest.raises(ValueError, match="long.npy: 1450 rows, expected 1500"):
        as_block(block)
    os.truncate(tmp_path / "long.npy", 1000)
    with pytest.raises(ValueError, match=r"long\.npy|mmap length"):
        as_block(block)


def test_wrong_input(base: Floats, tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="two known dimensions"):
        fdask.fit(da.zeros(5), 2)
    with pytest.raises(ValueError, match="no files"):
        fdask.fit([], 2)
    masked = da.ma.masked_less(da.from_array(base[:900], (300, 64)), 1)
    with pytest.raises(
        ValueError, match="^x, rows from (0|300|600): .* are masked"
    ):
        fdask.fit(masked, 2)
    for call in (lambda m: fdask.merge(m), lambda m: fdask.search(m, base, 1)):
        with pytest.raises(TypeError, match="^manifest = 3, expected a str"):
            call(3)
    np.save(tmp_path / "a.npy", base[:10])
    np.save(tmp_path / "b.npy", base[:10, :5])
    with pytest.raises(ValueError, match="b.npy: 5 columns"):
        fdask.fit([tmp_path / "a.npy", tmp_path / "b.npy"], 2)
    with pytest.raises(ValueError, match="10 rows"):
        fdask.fit([tmp_path / "a.npy"], 20)


def test_workers_may_be_in_other_folders(
    base: Floats, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "a.npy", base[:10])
    monkeypatch.chdir(tmp_path)
    rows = Rows("a.npy", None)
    monkeypatch.chdir("/")
    assert as_block(rows.blocks[0]).shape == (10, 128)


def test_what_does_not_travel_is_refused(
    built: Any, base: Floats, queries: Floats, tmp_path: pathlib.Path
) -> None:
    sel = faiss_ext.IDSelectorBatch([1, 2])
    for params in (faiss_ext.SearchParameters(sel=sel), {"sel": sel}):
        with pytest.raises(TypeError, match="params: a selector"):
            fdask.search(built, queries, 3, params=params)
    for x in (base, [[0.0]], None):
        with pytest.raises(
            TypeError, match=f"x: of type {type(x).__name__}, expected a dask"
        ):
            fdask.build(x, "GMM8,Flat", tmp_path)


def test_search_wants_one_of_two(built: Any, queries: Floats) -> None:
    with pytest.raises(ValueError, match="one of the two"):
        fdask.search(built, queries, 3)
    with pytest.raises(ValueError, match="not merged on disk"):
        fdask.search(built, queries, 3, params=dict(nprobe=2))


def test_parameters_are_a_dict(merged: Any, queries: Floats) -> None:
    with pytest.raises(TypeError, match="^params = 'nprobe=3', expected Sea"):
        fdask.search(merged, queries, 3, params="nprobe=3")  # type: ignore[arg-type]


def test_lists_without_a_mixture_stay_together(
    base: Floats,
    queries: Floats,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manifest = fdask.build(
        da.from_array(base), "IVF16,Flat", tmp_path, shard_rows=2000
    )
    index = fdask.merge(manifest, on_disk=True)
    monkeypatch.setattr(_dask_search, "_workers", lambda: ["one", "two"])
    index.nprobe = 4
    np.testing.assert_array_equal(
        fdask.search(manifest, queries, 3, params={"nprobe": 4})[1],
        index.search(queries, 3)[1],
    )
    with pytest.raises(ValueError, match="^shards = 2: the lists of IVF16,F"):
        fdask.search(manifest, queries, 3, params={}, shards=2)


@pytest.mark.parametrize("rows", [slice(1, None), [0, 0, *range(1, 1000)]])
@pytest.mark.parametrize("block_rows", [500, 1000, 2500])
def test_blocks_of_other_rows_than_the_array_says(
    rows: Any, block_rows: int, base: Floats, tmp_path: pathlib.Path
) -> None:
    x = da.from_array(base[:4000], chunks=(1000, 128)).map_blocks(
        lambda b, block_info: (
            b[rows] if block_info[0]["chunk-location"][0] == 2 else b
        ),
        dtype=np.float32,
    )
    match = r"^x, rows from 2000: (999|1001), expected 1000 by"
    with pytest.raises(ValueError, match=match):
        fdask.build(x, "GMM4,Flat", tmp_path, block_rows=block_rows)
    with pytest.raises(ValueError, match=match):
        fdask.fit(x, 2, block_rows=block_rows)


def test_damaged_and_missing_shards_are_refused(
    built: Any, queries: Floats, tmp_path: pathlib.Path
) -> None:
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


def test_a_build_that_fails_leaves_the_one_before(
    built: Any, base: Floats, queries: Floats, tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(built.parent, folder)
    names = sorted(path.name for path in folder.iterdir())
    wrong = base.copy()
    wrong[-2] = np.nan  # not among those that training looks at
    with pytest.raises(ValueError, match="row 398 has the value nan"):
        fdask.build(
            da.from_array(wrong, chunks=(800, 128)),
            "GMM8,Flat",
            folder,
            sample_rows=500,
            block_rows=700,
        )
    assert sorted(path.name for path in folder.iterdir()) == names
    before, after = (
        fdask.search(path / "manifest.json", queries, 3, nprobe=2)
        for path in (built.parent, folder)
    )
    np.testing.assert_array_equal(before[1], after[1])
    assert fdask.merge(folder / "manifest.json").ntotal == len(base)


def test_a_build_leaves_no_shards_of_the_one_before(
    base: Floats, tmp_path: pathlib.Path
) -> None:
    for shard_rows in (300, 900):
        manifest = fdask.build(
            da.from_array(base[:900]),
            "GMM4,Flat",
            tmp_path,
            shard_rows=shard_rows,
            block_rows=300,
        )
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["manifest.json", "shard00000.index", "trained.index"]
    assert fdask.merge(manifest).ntotal == 900


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_queries_that_are_not_finite(
    wrong: float, merged: Any, queries: Floats
) -> None:
    x = queries[:5].copy()
    x[2, 7] = wrong
    settings: list[dict[str, Any]] = [
        dict(nprobe=2),
        dict(params={}, shards=1),
        dict(params={}, shards=2),
    ]
    said = f"^queries: row 2 has the value {wrong} in dimension 7"
    for options in settings:
        with pytest.raises(ValueError, match=said):
            fdask.search(merged, x, 3, **options)


class Frame:
    """As Dask's data frames are."""

    def to_dask_array(self) -> None: ...
    def to_delayed(self) -> None: ...


def test_a_frame_is_no_array(base: Floats) -> None:
    index = faiss_ext.index_factory(128, "GMM8,Flat")
    calls = (lambda x: fdask.fit(x, 2), index.train, index.add)
    for call in calls:
        with pytest.raises(TypeError, match="^x: a Frame of Dask, expected"):
            call(Frame())


@pytest.mark.parametrize(
    "factory", ["GMM8,PQ8,RFlat", "IDMap,IVF8,Flat,RFlat"]
)
def test_an_index_that_refines_is_not_built(
    factory: str, base: Floats, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(ValueError, match=f'^factory = "{factory}".*without$'):
        fdask.build(da.from_array(base), factory, tmp_path / "out")


@pytest.mark.parametrize("factory", ["Flat", "SQ8", "PCA8,Flat"])
def test_an_index_that_takes_no_ids_is_not_built(
    factory: str, base: Floats, tmp_path: pathlib.Path
) -> None:
    x = da.from_array(base)
    with pytest.raises(ValueError, match=f'^factory = "{factory}": .* no ids'):
        fdask.build(x, factory, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    fdask.build(x, "IDMap,Flat", tmp_path / "out")


def test_an_id_map_may_come_last(base: Floats, tmp_path: pathlib.Path) -> None:
    fdask.build(da.from_array(base), "Flat,IDMap2", tmp_path / "out")


def test_shards_of_codes_alone_merge_in_memory(
    base: Floats, queries: Floats, tmp_path: pathlib.Path
) -> None:
    manifest = fdask.build(
        da.from_array(base), "GMM8,RaBitQ4", tmp_path, block_rows=2000
    )
    with pytest.raises(ValueError, match="^search.*RaBitQ4 are codes alone"):
        fdask.search(manifest, queries, 3, nprobe=2)
    with pytest.raises(ValueError, match="^merge.*RaBitQ4 are codes alone"):
        fdask.merge(manifest, on_disk=True)
    whole = faiss_ext.read_index(tmp_path / "trained.index")
    whole.add(base)
    merged = fdask.merge(manifest)
    np.testing.assert_array_equal(
        merged.search(queries, 3)[1], whole.search(queries, 3)[1]
    )


def test_a_damaged_file_of_vectors_is_refused(
    merged: Any, queries: Floats
) -> None:
    def search() -> Any:
        return fdask.search(merged, queries, 3, params={}, shards=2)

    D, _ = search()
    vectors = merged.parent / "merged.ivfdata"
    kept = vectors.rename(merged.parent / "kept")  # mapped by the search
    whole = kept.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for data, match in (
        (flipped, "merged.ivfdata: its checksum"),
        (whole[:1], f"merged.ivfdata: 1 bytes, expected {len(whole)}"),
    ):
        vectors.write_bytes(data)
        with pytest.raises(ValueError, match=match):
            search()
    vectors.unlink()
    with pytest.raises(FileNotFoundError, match="merged.ivfdata"):
        search()
    kept.rename(vectors)
    np.testing.assert_array_equal(search()[0], D)


def test_a_manifest_that_says_too_little_of_vectors(
    merged: Any, queries: Floats
) -> None:
    manifest = json.loads(merged.read_text())
    manifest["merged"]["ivfdata"] = {"file": "merged.ivfdata"}
    merged.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="merged.ivfdata: size = None"):
        fdask.search(merged, queries, 3, params={})


def test_the_checksum_of_vectors_is_read_once(
    merged: Any, queries: Floats, monkeypatch: pytest.MonkeyPatch
) -> None:
    fdask.search(merged, queries, 3, params={})
    monkeypatch.setattr(_dask_shards, "_sha256", None)
    fdask.search(merged, queries, 3, params={})


@pytest.mark.parametrize("dtype", [">f4", ">f8", np.longdouble, "f2", bool])
def test_blocks_are_fitted_as_the_estimator_reads_them(
    dtype: Any, base: Floats
) -> None:
    options: dict[str, Any] = dict(max_iter=3, tol=0, random_state=0)
    X = (base[:2000, :8] > 20).astype(dtype)
    with pytest.warns(UserWarning, match="converge"):
        a = fdask.fit(da.from_array(X, chunks=700), 3, **options)
    native = X.astype(np.float32 if dtype in (">f4", "f2") else np.float64)
    with pytest.warns(UserWarning, match="converge"):
        b = fdask.fit(da.from_array(native, chunks=700), 3, **options)
    np.testing.assert_allclose(a.means_, b.means_, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "options", "error", "match"),
    [
        (np.zeros((9, 2), object), {}, TypeError, "^x: dtype object"),
        (np.zeros((9, 2), complex), {}, TypeError, "^x: dtype complex128"),
        (np.zeros((0, 2)), {}, ValueError, r"^x: shape \(0, 2\)"),
        (np.zeros((9, 0)), {}, ValueError, r"^x: shape \(9, 0\)"),
        (None, {"sample_rows": -3}, ValueError, "^sample_rows = -3"),
        (None, {"sample_rows": 0}, ValueError, "^sample_rows = 0"),
        (None, {"block_rows": 2.5}, TypeError, "^block_rows = 2.5"),
    ],
)
def test_rows_that_cannot_be(
    x: Any,
    options: Any,
    error: Any,
    match: str,
    base: Floats,
    tmp_path: pathlib.Path,
) -> None:
    x = da.from_array(base if x is None else x, chunks=-1)
    with pytest.raises(error, match=match):
        fdask.fit(x, 2, **options)
    with pytest.raises(error, match=match):
        fdask.build(x, "GMM4,Flat", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("row", [0, 1203, 1999])
@pytest.mark.parametrize("value", [np.nan, 1e300])
def test_the_row_of_a_value_that_cannot_be(
    row: int, value: float, base: Floats
) -> None:
    x = base[:2000].astype(np.float64)
    x[row, 3] = value
    begin = row // 500 * 500
    with pytest.raises(
        ValueError,
        match=rf"^x, rows from {begin}: row {row - begin} of .* value "
        rf"{re.escape(f'{value:g}')} in dimension 3, expected",
    ):
        fdask.fit(da.from_array(x), 2, block_rows=500)


def test_options_that_cannot_be(base: Floats, tmp_path: pathlib.Path) -> None:
    x = da.from_array(base)
    wrong: list[tuple[Any, Any]] = [
        (0, ValueError),
        (-1, ValueError),
        (2.5, TypeError),
    ]
    for rows, error in wrong:
        with pytest.raises(error, match=f"^shard_rows = {rows}"):
            fdask.build(x, "GMM4,Flat", tmp_path / "out", shard_rows=rows)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="^backend = 'tpu'"):
        fdask.fit(x, 2, backend="tpu")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[1]", r"\[1\], expected what build wrote"),
        ("{", "no JSON"),
        ("{}", "format None, expected 1"),
        ('{"format": 1}', "factory = None, expected a str"),
    ],
)
def test_manifests_that_are_none(
    text: str, match: str, queries: Floats, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "m.json").write_text(text)
    for call in (
        lambda: fdask.merge(tmp_path / "m.json"),
        lambda: fdask.search(tmp_path / "m.json", queries, 3, nprobe=2),
    ):
        with pytest.raises(ValueError, match=f"m.json: {match}"):
            call()


def test_a_manifest_without_a_shards_file(
    built: Any, tmp_path: pathlib.Path
) -> None:
    manifest = json.loads(built.read_text())
    for wrong, match in (
        ({"merged": 3}, "merged: 3, expected what"),
        ({"shards": [{"sha256": ""}]}, r"shards\[0\]: file = None"),
    ):
        (tmp_path / "m.json").write_text(json.dumps({**manifest, **wrong}))
        with pytest.raises(ValueError, match=f"m.json: {match}"):
            fdask.merge(tmp_path / "m.json")
