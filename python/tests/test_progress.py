"""What verbose shows."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import faiss_ext
from conftest import make
from faiss_ext._progress import Bar

BLOCKS = 4


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(0).normal(size=(2000, 8)).astype(np.float32)


def test_bars_of_an_index(
    x: NDArray[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tqdm")
    index = make("GMM8,Flat", x)
    index.verbose = True
    index.add(np.array_split(x, BLOCKS)[0])
    index.add(iter(np.array_split(x, BLOCKS)))
    index.add_with_ids(x.astype(np.float64), np.arange(2000) + 10000)
    assert index.ntotal == 4500
    err = capfd.readouterr().err
    assert "adding" in err
    assert "vectors/s" in err
    index.verbose = False
    index.add(iter(np.array_split(x, BLOCKS)))
    assert capfd.readouterr().err == ""


def test_a_bar_for_blocks_that_train(
    x: NDArray[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tqdm")
    index = faiss_ext.index_factory(8, "GMM8,Flat")
    index.verbose = True
    index.train(iter(np.array_split(x, BLOCKS)))
    assert "reading" in capfd.readouterr().err
    assert index.is_trained


@pytest.mark.parametrize("installed", [True, False])
def test_lines_of_kmeans(
    x: NDArray[Any],
    installed: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if installed:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    kmeans = faiss_ext.Kmeans(8, 5, niter=3, verbose=True)
    kmeans.train(x)
    out, err = capfd.readouterr()
    lines = [line for line in out.splitlines() if line.startswith("iter")]
    assert [line.split(":")[0] for line in lines] == [
        f"iteration {i}" for i in (1, 2, 3)
    ]
    assert ("k-means" in err) == installed


def test_a_bar_closes_when_its_work_fails(
    capfd: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("tqdm")
    with (
        pytest.raises(ZeroDivisionError),
        Bar(True, 10, "working", "steps") as bar,
    ):
        time.sleep(0.2)  # bars are not drawn more often than that
        bar.advance(3, note="half way")
        raise ZeroDivisionError
    bar.say("after")
    out, err = capfd.readouterr()
    assert "half way" in err
    assert out == "after\n"
