"""Files of shards, and the manifest that names them."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

from . import _core
from ._factory import read_index, write_index
from ._files import replacing
from ._index import Index

FORMAT = 1


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest()


def write_shard(index: Index, path: Path) -> str:
    """A whole file or none, and its checksum."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        write_index(index, partial)
        digest = _sha256(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return digest


def describe(path: Path) -> dict[str, Any]:
    """What the manifest says of a file that `check_file` is to know again."""
    return {
        "file": path.name,
        "size": path.stat().st_size,
        "sha256": _sha256(path),
    }


def check_file(folder: Path, said: dict[str, Any]) -> None:
    """Size and checksum of what `describe` said; the checksum once as long as
    this process sees no change of the file."""
    path = folder / said["file"]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: a file of the manifest is missing")
    found = path.stat()
    if found.st_size != said["size"]:
        raise ValueError(
            f"{path}: {found.st_size} bytes, expected {said['size']} by the "
            "manifest: it is damaged"
        )
    _check_once(path, said["sha256"], found.st_mtime_ns)


@functools.lru_cache(maxsize=4)
def _check_once(path: Path, sha256: str, mtime_ns: int) -> None:
    check_shard(path, sha256)


def check_shard(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: a shard of the manifest is missing")
    if _sha256(path) != sha256:
        raise ValueError(
            f"{path}: its checksum is not the manifest's: it is damaged, or "
            "of another training"
        )


def load_shard(path: str, sha256: str) -> Index:
    check_shard(Path(path), sha256)
    return read_index(path)


@functools.lru_cache(maxsize=4)
def searched_shard(path: str, sha256: str) -> Index:
    """Kept, and not to be changed. Vectors on disk are those beside the file,
    wherever its folder has been moved."""
    check_shard(Path(path), sha256)
    return read_index(
        path, _core.IO_FLAG_ONDISK_SAME_DIR | _core.IO_FLAG_READ_ONLY
    )


def write_manifest(manifest: dict[str, Any], path: Path) -> None:
    with replacing(path) as file:
        file.write((json.dumps(manifest, indent=1) + "\n").encode())


def check_has_vectors(parts: dict[str, Any], what: str) -> None:
    if re.search(r"GMM.*RaBitQ", parts["factory"]):
        raise ValueError(
            f"{what}: shards of {parts['factory']} are codes alone, expected "
            "vectors; merge(manifest) makes an index of them in memory"
        )


#: What a manifest has besides its format.
_FIELDS: dict[str, type] = {
    "factory": str,
    "d": int,
    "metric": int,
    "ntotal": int,
    "trained_sha256": str,
    "shards": list,
}


def _check_fields(said: Any, fields: dict[str, type], where: str) -> None:
    if not isinstance(said, dict):
        raise ValueError(f"{where}: {said!r}, expected what build wrote")
    for name, kind in fields.items():
        if not isinstance(said.get(name), kind):
            raise ValueError(
                f"{where}: {name} = {said.get(name)!r}, expected a "
                f"{kind.__name__}"
            )


def read_manifest(path: str | os.PathLike[str]) -> dict[str, Any]:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"manifest = {path!r}, expected a string or a path")
    try:
        manifest: dict[str, Any] = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error})") from None
    _check_fields(manifest, {}, str(path))
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path}: format {manifest.get('format')}, expected {FORMAT}"
        )
    _check_fields(manifest, _FIELDS, str(path))
    files = {f"shards[{i}]": s for i, s in enumerate(manifest["shards"])}
    if "merged" in manifest:
        files["merged"] = manifest["merged"]
    for name, said in files.items():
        _check_fields(said, {"file": str, "sha256": str}, f"{path}: {name}")
    if "ivfdata" in manifest.get("merged", {}):
        _check_fields(
            manifest["merged"]["ivfdata"],
            {"file": str, "size": int, "sha256": str},
            f"{path}: merged.ivfdata",
        )
    return manifest
