"""The programs in examples/python run, and what the pages say to type."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import faiss_ext
from conftest import Floats

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "python"
NEEDS = {"swap.py": "faiss", "mixture.py": "sklearn"}


@pytest.mark.parametrize(
    "path", sorted(FOLDER.glob("*.py")), ids=lambda p: p.name
)
def test_example(path: Any, tmp_path: pathlib.Path) -> None:
    if path.name in NEEDS:
        pytest.importorskip(NEEDS[path.name])
    done = subprocess.run(
        [sys.executable, path],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


PAGES = [
    path
    for path in [
        ROOT / "README.md",
        ROOT / "python" / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    if "```python" in path.read_text()
]
#: Long or elsewhere, as a page says it: what is typed here.
SHORTER = {"GMM1024": "GMM16", "GMM4096": "GMM16", "/shared/folder": "folder"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_what_a_page_says_to_type(
    page: pathlib.Path,
    base: Floats,
    queries: Floats,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All blocks of a page, one after the other."""
    text = page.read_text()
    for there, here in SHORTER.items():
        text = text.replace(there, here)
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    names: dict[str, Any] = {"faiss_ext": faiss_ext, "np": np, "x": base}
    names |= {"queries": queries, "q": queries, "some_queries": queries}
    names |= {"their_queries": queries, "n": len(base), "names": [0, 1]}
    names |= {"load": lambda name: base[name : name + 9]}
    names |= {"ids": np.arange(len(base)) + 10**6, "old_ids": range(100)}
    names |= {"mask_by_id": np.arange(2 * 10**6) % 2 == 0}
    monkeypatch.chdir(tmp_path)
    base.astype(np.uint8).tofile("base.u8")
    (tmp_path / "folder").mkdir()
    if "faiss." in code.replace("faiss_ext.", ""):
        names["faiss"] = faiss = pytest.importorskip("faiss")
        old = faiss.index_factory(base.shape[1], "IVF16,Flat")
        old.train(base)
        old.add(base)
        faiss.write_index(old, "old.index")
    if "GaussianMixture" in code:
        pytest.importorskip("sklearn")
    if "faiss_ext.dask" in code:
        pytest.importorskip("distributed")
        names["x"] = pytest.importorskip("dask.array").from_array(base)
    index = faiss_ext.index_factory(base.shape[1], "GMM16,Flat")
    index.train(base)
    index.add(base)
    names["index"] = index
    exec(compile(code, str(page), "exec"), names)
