"""The programs in examples/python run."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "examples" / "python"
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
