"""The command line, as a person types it."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import faiss_ext
from conftest import Floats, Ids, recall
from faiss_ext import _arrays, _files, _sweep

pytest.importorskip("typer")

from faiss_ext import _steps  # noqa: E402


def run(*args: Any, code: Any = 0, cwd: Any = None) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "faiss_ext", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=cwd,
        env=dict(os.environ, COLUMNS="200", NO_COLOR="1"),
    )
    assert done.returncode == code, done.stderr + done.stdout
    return done


def said(*args: Any, **options: Any) -> Any:
    return json.loads(run(*args, "--json", **options).stdout)


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    base_u8: NDArray[np.uint8],
    queries: Floats,
    truth: Ids,
) -> Any:
    folder = tmp_path_factory.mktemp("cli")
    with open(folder / "base.u8bin", "wb") as f:
        np.array(base_u8.shape, np.uint32).tofile(f)
        base_u8.tofile(f)
    _files.write_matrix(folder / "query.fbin", queries)
    _files.write_matrix(folder / "truth.ibin", truth)
    return folder


@pytest.fixture(scope="module")
def built(folder: Any) -> Any:
    facts = said(
        "build",
        "GMM16,Flat",
        folder / "base.u8bin",
        "-o",
        folder / "a.index",
        "-q",
        folder / "query.fbin",
        "--niter",
        3,
        "--target-recall",
        0.9,
    )
    return folder / "a.index", facts


def test_build_says_what_it_built(built: Any) -> None:
    path, facts = built
    assert facts["factory"] == "GMM16,Flat"
    assert (facts["ntotal"], facts["d"], facts["nlist"]) == (6000, 128, 16)
    assert facts["calibrated"] and not facts["calibrated_on_own_vectors"]
    assert facts["bytes"] == path.stat().st_size
    assert not list(path.parent.glob("*.partial"))


def test_build_wrote_what_the_package_reads(
    built: Any, queries: Floats, truth: Ids
) -> None:
    index = faiss_ext.read_index(built[0])
    assert index.target_recall == pytest.approx(0.9)
    assert recall(index.search(queries, 10)[1], truth) > 0.8


def test_info(built: Any, folder: Any) -> None:
    facts = said("info", built[0])
    assert facts["ntotal"] == 6000
    assert facts["largest_list"] >= 6000 / 16
    assert facts["imbalance"] >= 1
    assert said("info", folder / "base.u8bin")["dtype"] == "uint8"
    assert "GMM16,Flat" in run("info", built[0]).stdout


def test_train_and_add(folder: Any) -> None:
    out = folder / "t.index"
    facts = said(
        "train",
        "GMM8_Diag,SQ8",
        folder / "base.u8bin",
        "-o",
        out,
        "--niter",
        2,
        "--sample",
        1000,
        "--seed",
        3,
    )
    assert facts["trained"] and facts["ntotal"] == 0
    assert facts["covariance"] == "diag"
    for ntotal in (6000, 12000):
        facts = said("add", out, folder / "base.u8bin")
        assert (facts["added"], facts["ntotal"]) == (6000, ntotal)


def test_the_seed_draws_the_sample(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = _arrays.sample_blocks

    def recorded(*args: Any) -> Floats:
        drawn.append(args[-1])
        return draw(*args)

    monkeypatch.setattr(_arrays, "sample_blocks", recorded)
    base = _files.open_vectors(folder / "base.u8bin")
    for seed in (None, 0, 7):
        _steps.train_index(
            "GMM4,Flat", base, _steps.Metric.l2, 1, seed, 200, True
        )
    assert drawn == [1234, 0, 7]


def test_search_finds_and_says_the_recall(
    built: Any, folder: Any, queries: Floats, truth: Ids
) -> None:
    facts = said(
        "search",
        built[0],
        folder / "query.fbin",
        "-o",
        folder / "I.ibin",
        "--distances-out",
        folder / "D.npy",
        "--nprobe",
        16,
        "--groundtruth",
        folder / "truth.ibin",
    )
    assert facts["recall"] == 1
    assert facts["qps"] > 0
    found = _files.open_vectors(folder / "I.ibin").array()
    assert recall(found, truth) == 1
    D = np.load(folder / "D.npy")
    assert (np.diff(D, axis=1) >= 0).all()


def test_calibrate(built: Any, folder: Any) -> None:
    facts = said(
        "calibrate", built[0], "-o", folder / "c.index", "-k", 5, "--nq", 100
    )
    assert set(facts["choices"]) == {"0.8", "0.9", "0.95", "0.99"}
    index = faiss_ext.read_index(folder / "c.index")
    assert (index.calibration.k, index.calibration.nq) == (5, 100)
    text = run(
        "calibrate",
        built[0],
        "-q",
        folder / "query.fbin",
        "-o",
        folder / "c.index",
        "--target-recall",
        0.8,
    ).stdout
    assert re.search(r"0\.9", text)
    assert faiss_ext.read_index(
        folder / "c.index"
    ).target_recall == pytest.approx(0.8)
    said(
        "calibrate", built[0], folder / "query.fbin", "-o", folder / "d.index"
    )
    index = faiss_ext.read_index(folder / "d.index")
    assert not index.calibration.own_queries


def test_convert_there_and_back(
    folder: Any, base: Floats, queries: Floats
) -> None:
    stock = faiss_ext.index_factory(128, "IVF16,Flat")
    stock.train(base)
    stock.add(base)
    faiss_ext.write_index(stock, folder / "stock.index")
    facts = said(
        "convert",
        folder / "stock.index",
        "-o",
        folder / "g.index",
        "--to",
        "gmm",
    )
    assert facts["mixture"]
    facts = said(
        "convert",
        folder / "g.index",
        "-o",
        folder / "f.index",
        "--to",
        "faiss",
    )
    assert not facts["mixture"]
    assert facts["ntotal"] == 6000
    again = faiss_ext.read_index(folder / "f.index")
    again.nprobe = 16
    stock.nprobe = 16
    np.testing.assert_array_equal(
        again.search(queries, 5)[1], stock.search(queries, 5)[1]
    )


def test_sweep_and_report(built: Any, folder: Any) -> None:
    facts = said(
        "sweep",
        built[0],
        "-q",
        folder / "query.fbin",
        "--base",
        folder / "base.u8bin",
        "--repeat",
        1,
        "--html",
        folder / "report.html",
    )
    rows = facts["results"][0]["rows"]
    by_nprobe = [r for r in rows if r["nprobe"]]
    assert [r["nprobe"] for r in by_nprobe] == [1, 2, 4]
    recalls = [r["recall"] for r in by_nprobe]
    assert recalls == sorted(recalls)
    assert all(r["distances"] > 0 and r["qps"] > 0 for r in rows)
    promised = [r for r in rows if r["target_recall"]]
    assert all(r["recall"] > r["target_recall"] - 0.1 for r in promised)
    page = (folder / "report.html").read_text()
    assert "GMM16,Flat" in page


def test_sweep_as_a_table(built: Any, folder: Any) -> None:
    text = run(
        "sweep",
        built[0],
        "-q",
        folder / "query.fbin",
        "--groundtruth",
        folder / "truth.ibin",
        "--repeat",
        1,
    ).stdout
    assert "recall@10" in text
    assert "target_recall=0.95" in text
    said = run(
        "sweep",
        built[0],
        "-q",
        folder / "query.fbin",
        "--base",
        folder / "query.fbin",
        "--repeat",
        1,
    ).stderr
    assert "200 vectors, where the index has 6000" in said


def test_exact_neighbors_in_blocks(
    base: Floats, queries: Floats, truth: Ids
) -> None:
    found = _sweep.exact_neighbors(
        (base[i : i + 999] for i in range(0, 6000, 999)),
        queries,
        10,
        faiss_ext.METRIC_L2,
    )
    assert recall(found, truth) == 1
    found = _sweep.exact_neighbors(
        iter([base]), queries, 1, faiss_ext.METRIC_INNER_PRODUCT
    )
    exact = (queries.astype(np.float64) @ base.T).argmax(axis=1)
    np.testing.assert_array_equal(found[:, 0], exact)


def test_exit_codes(built: Any, folder: Any) -> None:
    assert "no such file" in run("info", folder / "no.index", code=3).stderr
    error = run(
        "build",
        "GMM16,Falt",
        folder / "base.u8bin",
        "-o",
        folder / "x",
        code=1,
    ).stderr
    assert "Falt" in error
    assert "Traceback" not in error
    assert not (folder / "x").exists()
    error = run(
        "build",
        "IVF16,Flat",
        folder / "base.u8bin",
        "-o",
        folder / "x",
        "-q",
        folder / "query.fbin",
        code=1,
    ).stderr
    assert "--queries" in error and "IVF16,Flat" in error
    run("build", "GMM16,Flat", code=2)
    run("frobnicate", code=2)
    (folder / "bad.fbin").write_bytes(b"12345678910")
    assert "bad.fbin" in run("info", folder / "bad.fbin", code=1).stderr
    assert (
        "groundtruth"
        in run("sweep", built[0], "-q", folder / "query.fbin", code=1).stderr
    )


def test_what_cannot_be_written_is_said_before_the_work(
    folder: Any, built: Any
) -> None:
    base, queries = folder / "base.u8bin", folder / "query.fbin"
    nowhere = folder / "nowhere" / "out.index"
    for out in (nowhere, folder):
        done = run("build", "GMM16,Flat", base, "-o", out, code=3)
        assert str(out) in done.stderr.replace("\n", "")
        assert "adding" not in done.stderr
    done = run("search", built[0], queries, "-o", folder / "ids.txt", code=1)
    assert "ids.txt" in done.stderr and "searching" not in done.stderr
    done = run(
        *("build", "GMM16,Flat", base, "-o", folder / "b.index"),
        *("--target-recall", 2),
        code=1,
    )
    assert "target_recall = 2" in done.stderr and "adding" not in done.stderr
    assert not (folder / "b.index").exists()


def test_a_refined_index(folder: Any) -> None:
    said(
        *("build", "GMM16,SQ4,RFlat", "base.u8bin", "-o", "r.index"),
        cwd=folder,
    )
    truth = ("--groundtruth", "truth.ibin")
    command = ("search", "r.index", "query.fbin", "-o", "r.npy", *truth)
    one, all_lists = (
        said(*command, "--nprobe", n, cwd=folder)["recall"] for n in (1, 16)
    )
    assert one < all_lists
    results = said(
        *("sweep", "r.index", "-q", "query.fbin", *truth, "--repeat", 1),
        cwd=folder,
    )["results"]
    rows = {row["setting"]: row["recall"] for row in results[0]["rows"]}
    assert rows["nprobe=1"] == pytest.approx(one)
    assert rows["target_recall=0.99"] > rows["target_recall=0.5"]


def test_names_of_files_are_no_markup(built: Any, folder: Any) -> None:
    (folder / "a[").mkdir()
    names = ["a[/b].index", "[red]b.index", "x:x:.index"]
    for name in names:
        shutil.copy(built[0], folder / name)
        assert name in run("info", name, cwd=folder).stdout
        missing = run("info", f"{name}.not", code=3, cwd=folder)
        assert f"{name}.not: no such file" in missing.stderr
    truth = ("-q", "query.fbin", "--groundtruth", "truth.ibin")
    done = run("sweep", *names, *truth, "--repeat", 1, cwd=folder)
    for name in names:
        assert f"{name}: " in done.stdout and f"{name}: " in done.stderr


def test_names_of_files_that_are_no_text(
    built: Any, folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8:strict")
    name = os.fsdecode(b"\xff.index")
    shutil.copy(built[0], folder / name)
    assert r"\udcff.index" in run("info", name, cwd=folder).stdout
    missing = run("info", f"{name}x", code=3, cwd=folder).stderr
    assert missing == "faiss-ext: \\udcff.indexx: no such file\n"


def test_rows_that_are_wrong_are_the_files(built: Any, folder: Any) -> None:
    x = np.zeros((5000, 128), np.float32)
    x[4500, 3] = np.nan
    np.save(folder / "nan.npy", x)
    command = ("search", built[0], "nan.npy", "-o", "ids.npy")
    done = run(*command, code=1, cwd=folder)
    assert "nan.npy: row 4500 has the value nan" in done.stderr
    long = _files._Mapped("long.npy", x.reshape(-1, 2))
    with pytest.raises(
        ValueError, match=f"^long.npy: row {4500 * 64 + 1} has"
    ):
        list(_steps.counted(long, lambda n: None))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_stays_below_the_size_of_the_data(
    tmp_path: pathlib.Path,
) -> None:
    """The most anonymous memory of a build, as the kernel counts it."""
    n, d = 400_000, 128
    file = tmp_path / "base.fbin"
    rng = np.random.default_rng(0)
    with open(file, "wb") as f:
        np.array([n, d], np.uint32).tofile(f)
        for _ in range(10):
            rng.random((n // 10, d), np.float32).tofile(f)
    process = subprocess.Popen(
        [sys.executable, "-m", "faiss_ext", "build", "GMM64,SQ4"]
        + [str(file), "-o", str(tmp_path / "out.index"), "--niter", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    most = 0
    status = pathlib.Path(f"/proc/{process.pid}/status")
    try:
        while process.poll() is None:
            found = re.search(r"RssAnon:\s*(\d+) kB", status.read_text())
            most = max(most, 1024 * int(found[1]) if found else 0)
            time.sleep(0.005)
    finally:
        process.kill()
    assert process.returncode == 0
    index = faiss_ext.read_index(tmp_path / "out.index")
    assert len(index) == n
    print(f"{most / 2**20:.0f} MB of {file.stat().st_size / 2**20:.0f}")
    assert 0 < most < file.stat().st_size


def test_a_failed_write_leaves_the_old_file(folder: Any, built: Any) -> None:
    before = built[0].read_bytes()
    # A disk that is full after 100,000 bytes.
    program = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100000, 100000))
from faiss_ext.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program, "add", built[0]]
        + [folder / "query.fbin"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 3, done.stderr
    assert "a.index" in done.stderr
    assert built[0].read_bytes() == before
    assert not list(folder.glob("*.partial"))


def test_indexes_of_other_metrics_have_other_neighbours(
    built: Any, folder: Any
) -> None:
    ip = folder / "ip.index"
    run(
        *("build", "GMM16,Flat", folder / "base.u8bin", "-o", ip),
        *("--metric", "ip"),
    )
    truth = ("-q", folder / "query.fbin", "--groundtruth")
    done = run("sweep", built[0], ip, *truth, folder / "truth.ibin", code=1)
    assert "ip.index" in done.stderr
    done = run("sweep", built[0], *truth, folder / "query.fbin", code=1)
    assert "integers" in done.stderr


def test_version() -> None:
    said = run("--version").stdout
    assert faiss_ext.__version__ in said and faiss_ext.faiss_version in said


def test_help_lists_the_commands() -> None:
    text = run("--help").stdout
    for command in (
        "train",
        "build",
        "add",
        "search",
        "calibrate",
        "sweep",
        "info",
        "convert",
    ):
        assert command in text
