"""Training, building and searching on the workers of a Dask cluster.

Scheduling, transport and retries are Dask's. E-steps run over global blocks of
rows of one size, and their sums are merged in a tree of fixed shape: with one
backend and instruction set the fitted mixture has the same bits whatever the
number of workers, and whichever of them die.

Workers write and read shards by path: the folder must be one that all of them
see. A worker with one thread leaves all its cores to OpenMP.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from dask import delayed

from . import _arrays, _core
from ._dask_fit import fit
from ._dask_rows import Block, Rows, as_block, computed
from ._dask_search import search
from ._dask_shards import (
    FORMAT,
    check_has_vectors,
    check_shard,
    describe,
    load_shard,
    read_manifest,
    write_manifest,
    write_shard,
)
from ._factory import index_factory
from ._index import Index
from ._progress import Bar

__all__ = ["build", "fit", "merge", "search"]


def _check_takes_ids(index: Index, factory: str) -> None:
    """Rows of a shard have ids of their own."""
    if hasattr(index, "k_factor"):
        raise ValueError(
            f'factory = "{factory}": shards are searched with parameters and '
            "merged, which RFlat and Refine do not allow; expected it without"
        )
    has_map = any(part.startswith("IDMap") for part in factory.split(","))
    if not index._core.has_lists() and not has_map:
        raise ValueError(
            f'factory = "{factory}": such an index takes no ids, expected one '
            f'with lists (GMM or IVF), or "IDMap,{factory}"'
        )


def _build_shard(
    folder: str,
    trained_sha256: str,
    name: str,
    begin: int,
    blocks: list[Block],
    block_names: list[str],
) -> dict[str, Any]:
    index = load_shard(f"{folder}/trained.index", trained_sha256)
    if index.has_mixture:
        index.calibrate_on_add = False
    at = begin
    for block, block_name in zip(
        map(as_block, blocks), block_names, strict=True
    ):
        try:
            index.add_with_ids(block, np.arange(at, at + len(block)))
        except ValueError as error:
            raise ValueError(f"{block_name}: {error}") from None
        at += len(block)
    path = Path(folder) / name
    return {
        "file": name,
        "begin": begin,
        "rows": at - begin,
        "sha256": write_shard(index, path),
    }


def build(
    x: Any,
    factory: str,
    out: str | os.PathLike[str],
    *,
    metric: int = _core.METRIC_L2,
    shard_rows: int = 1 << 20,
    sample_rows: int | None = None,
    block_rows: int | None = None,
    verbose: bool = False,
) -> Path:
    """Shards of one index, which share what was trained.

    Parameters
    ----------
    x : dask array of shape (n, d), or paths of files
    factory : str
        As for `index_factory`. Trained here, on a sample. One that takes ids:
        with lists and without RFlat, or ``"IDMap,Flat"``. Shards of codes
        alone (``"GMM4096,RaBitQ4"``) are for `merge` into memory.
    out : str or path
        A folder that all workers see.
    metric : int
    shard_rows : int
        Rows of a shard at most, whole blocks; a worker holds as many.
    sample_rows : int, optional
        Evenly spaced rows to train on; 256 a list and at least 65,536 if left
        out.
    block_rows : int, optional
    verbose : bool
        A bar of tqdm's, where it is installed. A fit has one with
        ``verbose=1``; Dask's dashboard shows all tasks.

    Returns
    -------
    Path
        The manifest, ``out/manifest.json``. Ids are numbers of rows. What an
        earlier build left in `out` stays, and needs its room, until all of
        this one is there.
    """
    rows = Rows(x, block_rows)
    index = index_factory(rows.d, factory, metric)
    _check_takes_ids(index, factory)
    shard_rows = _arrays.count(shard_rows, "shard_rows")
    nlist = index.nlist if hasattr(index, "nlist") else 1
    index.train(rows.sample(sample_rows, max(65536, 256 * nlist)))
    folder = Path(os.path.realpath(out))
    folder.mkdir(parents=True, exist_ok=True)
    each = max(1, shard_rows // rows.block_rows)
    # What an earlier build left stays whole until all of this one is there.
    partial = folder / f"{uuid.uuid4().hex}.partial"
    partial.mkdir()
    try:
        trained = write_shard(index, partial / "trained.index")
        tasks = []
        for number, first in enumerate(range(0, len(rows.blocks), each)):
            tasks.append(
                delayed(_build_shard)(
                    str(partial),
                    trained,
                    f"shard{number:05d}.index",
                    first * rows.block_rows,
                    rows.blocks[first : first + each],
                    rows.names[first : first + each],
                )
            )
        with Bar(verbose, len(tasks), "building", "shards") as bar:
            shards = computed(tasks, bar)
        manifest = {
            "format": FORMAT,
            "factory": factory,
            "d": rows.d,
            "metric": metric,
            "ntotal": rows.n,
            "trained_sha256": trained,
            "shards": shards,
        }
        write_manifest(manifest, partial / "manifest.json")
        names = ["trained.index", *(shard["file"] for shard in shards)]
        for name in [*names, "manifest.json"]:
            os.replace(partial / name, folder / name)
        # An earlier build may have had more.
        for path in folder.glob(f"shard{'[0-9]' * 5}.index"):
            if path.name not in names:
                path.unlink()
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder / "manifest.json"


def merge(
    manifest: str | os.PathLike[str],
    *,
    on_disk: bool = False,
    queries: Any = None,
) -> Index:
    """All shards as one index, calibrated.

    Of indexes with lists: shards of ``"IDMap,Flat"`` are searched one by one,
    with `nprobe`, and not merged.

    What ``on_disk=True`` returns must not be added to while `search` is used:
    the vectors would go into the file that workers read.

    Parameters
    ----------
    manifest : str or path
    on_disk : bool
        Vectors go to ``merged.ivfdata`` beside the manifest, and the index to
        ``merged.index``, for `search` with params. Memory O(codes). Not of
        codes alone.
    queries : array of shape (n, d), optional
        To calibrate on; vectors of the index if left out.
    """
    parts = read_manifest(manifest)
    if on_disk:
        check_has_vectors(parts, "merge with on_disk=True")
    folder = Path(os.path.realpath(manifest)).parent
    index = load_shard(str(folder / "trained.index"), parts["trained_sha256"])
    if on_disk:
        paths = [folder / shard["file"] for shard in parts["shards"]]
        for path, shard in zip(paths, parts["shards"], strict=True):
            check_shard(path, shard["sha256"])
        index._core.merge_ondisk(
            [str(path) for path in paths],
            str(folder / "merged.ivfdata"),
            False,
        )
        if queries is not None:
            index.calibrate(queries)
        parts["merged"] = {
            "file": "merged.index",
            "sha256": write_shard(index, folder / "merged.index"),
            "ivfdata": describe(folder / "merged.ivfdata"),
        }
        write_manifest(parts, Path(manifest))
        return index
    calibrates = index.has_mixture and index.calibrate_on_add
    if calibrates:
        index.calibrate_on_add = False
    for shard in parts["shards"]:
        index.merge_from(
            load_shard(str(folder / shard["file"]), shard["sha256"])
        )
    if calibrates:
        index.calibrate_on_add = True
        index.optimize()
    if queries is not None:
        index.calibrate(queries)
    return index
