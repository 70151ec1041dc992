"""What the command line refuses, before the work."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import faiss_ext
from conftest import Floats
from faiss_ext import _files

typer = pytest.importorskip("typer")

from faiss_ext import _cli, _steps  # noqa: E402


@pytest.fixture
def folder(
    tmp_path: pathlib.Path,
    filled: faiss_ext.Index,
    base: Floats,
    queries: Floats,
    monkeypatch: pytest.MonkeyPatch,
) -> Any:
    """The working folder, where no work may begin."""
    monkeypatch.chdir(tmp_path)
    faiss_ext.write_index(filled, "a.index")
    _files.write_matrix("base.fbin", base[:500])
    _files.write_matrix("q.fbin", queries)
    _files.write_matrix("short.fbin", queries[:, :5])
    np.save("empty.npy", queries[:0])

    def work(*args: Any, **options: Any) -> None:
        raise AssertionError("the work began")

    monkeypatch.setattr(_cli, "train_index", work)
    monkeypatch.setattr(_cli, "add_vectors", work)
    monkeypatch.setattr(faiss_ext.Index, "search", work)
    monkeypatch.setattr(faiss_ext.Index, "calibrate", work)
    return tmp_path


def refuses(command: str, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        _cli.app(command.split(), standalone_mode=False)


@pytest.mark.parametrize(
    ("command", "match"),
    [
        ("-o ids.fbin", r"^ids.fbin: .* ends in \.npy or \.ibin"),
        ("-o i.npy --distances-out d.ibin", r"^d.ibin: .*\.npy or \.fbin"),
        ("-o i.npy --distances-out ./i.npy", "^i.npy: an input or another"),
        ("-o a.index", "^a.index: an input"),
        ("-o t.ibin --groundtruth t.ibin:x", "^t.ibin: an input"),
        ("-o i.npy --distances-out q.fbin", "^q.fbin: an input"),
    ],
)
def test_search_writes_what_is_its_own(
    command: str, match: str, folder: Any
) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    refuses(f"search a.index q.fbin {command}", ValueError, match)
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize(
    "command",
    [
        "train GMM4,Flat base.fbin -o base.fbin",
        "build GMM4,Flat base.fbin -o base.fbin",
        "build GMM4,Flat base.fbin -q q.fbin -o q.fbin",
        "add a.index base.fbin -o base.fbin",
        "calibrate a.index -q q.fbin -o q.fbin",
        "sweep a.index -q q.fbin --base base.fbin --html base.fbin",
    ],
)
def test_inputs_are_not_overwritten(command: str, folder: Any) -> None:
    refuses(command, ValueError, "fbin: an input")


@pytest.mark.parametrize("asked", ["short.fbin", "empty.npy"])
@pytest.mark.parametrize(
    "command",
    [
        "build GMM4,Flat base.fbin -o b.index -q",
        "calibrate a.index -q",
        "sweep a.index --base base.fbin -q",
    ],
)
def test_queries_are_of_the_indexs_dimension(
    command: str, asked: str, folder: Any
) -> None:
    refuses(f"{command} {asked}", ValueError, f"{asked}: .*expected .*d = 128")


def test_search_takes_queries_of_no_other_dimension(folder: Any) -> None:
    search = "search a.index -o i.npy"
    refuses(f"{search} short.fbin", ValueError, "short.fbin: 200 x 5, expect")
    _cli.app(f"{search} empty.npy".split(), standalone_mode=False)
    assert np.load(folder / "i.npy").shape == (0, 10)


def test_seeds_that_do_not_fit(folder: Any) -> None:
    refuses(
        "train GMM4,Flat base.fbin -o t --seed 99999999999",
        typer.BadParameter,
        "2147483647",
    )


def test_counts_that_do_not_fit(folder: Any) -> None:
    search = "search a.index q.fbin -o i.npy"
    refuses(f"{search} -k 99999999999", typer.BadParameter, "2147483647")
    refuses(
        f"{search} --nprobe 99999999999999999999",
        ValueError,
        "^nprobe = 99999999999999999999, expected at most",
    )


@pytest.mark.parametrize("option", ["--queries q.fbin", "--target-recall .9"])
def test_what_is_for_a_mixture_needs_one(option: str, folder: Any) -> None:
    name, _ = option.split()
    refuses(
        f"build IVF16,Flat base.fbin -o b.index {option}",
        ValueError,
        f"^{name} = .*: for a GMM index, and IVF16,Flat is none",
    )


@pytest.mark.parametrize("name", ["j.hdf5", "j.parquet", "j.npy", "j.index"])
@pytest.mark.parametrize("data", [b"", b"junkjunkjunk"])
def test_files_of_something_else_are_named(
    name: str, data: bytes, folder: Any
) -> None:
    (folder / name).write_bytes(data)
    refuses(f"info {name}", ValueError, f"^{name}: (?!.*ioctl)")


def test_files_that_may_not_be_read(
    folder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os, "access", lambda path, mode, **options: mode != os.R_OK
    )
    for command, name in (
        ("info a.index", "a.index"),
        ("search a.index q.fbin -o i.npy", "a.index"),
        ("info q.fbin", "q.fbin"),
        ("train GMM4,Flat q.fbin -o a.index", "q.fbin"),
    ):
        refuses(command, PermissionError, f"^{name}: it may not be read")


def test_a_full_disk_is_told_with_the_files_name(folder: Any) -> None:
    with pytest.raises(OSError, match=r"No space left on device: 'i\.npy'"):
        with _files.replacing("i.npy"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_folders_are_no_files(folder: Any) -> None:
    refuses("info .", IsADirectoryError, r"\.: a folder, expected a file")
    with pytest.raises(IsADirectoryError, match="a folder"):
        faiss_ext.read_index(folder)


def test_links_in_a_circle_are_no_files(folder: Any) -> None:
    (folder / "loop.fbin").symlink_to("loop.fbin")
    for command in (
        "info loop.fbin",
        "train GMM4,Flat loop.fbin -o b.index",
        "search a.index loop.fbin -o i.npy",
    ):
        refuses(command, FileNotFoundError, "^loop.fbin: no such file")


def test_cut_indexes_are_too_short(folder: Any) -> None:
    data = (folder / "a.index").read_bytes()
    for size in (0, 3, 20):
        (folder / "cut.index").write_bytes(data[:size])
        with pytest.raises(
            faiss_ext.FaissError, match=rf"cut\.index: {size} bytes, expected"
        ):
            _steps.open_index(pathlib.Path("cut.index"))


def test_queries_to_calibrate_on(folder: Any, queries: Floats) -> None:
    _files.write_matrix("few.fbin", queries[:19])
    nan = queries.copy()
    nan[7, 2] = np.nan
    _files.write_matrix("nan.fbin", nan)
    for command in (
        "build GMM4,Flat base.fbin -o b.index -q",
        "calibrate a.index -q",
    ):
        refuses(f"{command} few.fbin", ValueError, "^few.fbin: 19 .* 20 or m")
        refuses(f"{command} nan.fbin", ValueError, "^nan.fbin: row 7 has")
    refuses(
        "calibrate a.index q.fbin -q base.fbin",
        ValueError,
        "^q.fbin and --queries base.fbin: expected one file",
    )
    refuses(
        "build GMM4,Flat base.fbin -o b.index -q q.fbin -k 500",
        ValueError,
        "^-k 500: expected fewer than the 500 vectors",
    )


def test_rows_that_are_no_vectors_of_the_index(
    folder: Any, base: Floats
) -> None:
    np.save("complex.npy", base[:100].astype(np.complex64))
    for command in (
        "train GMM4,Flat complex.npy -o b.index",
        "build GMM4,Flat complex.npy -o b.index",
        "add a.index complex.npy -o b.index",
        "search a.index complex.npy -o i.npy",
        "calibrate a.index -q complex.npy",
        "sweep a.index -q q.fbin --base complex.npy",
    ):
        refuses(command, TypeError, "^complex.npy: dtype complex64, expected")
    for command in (
        "add a.index short.fbin -o b.index",
        "sweep a.index -q q.fbin --base short.fbin",
    ):
        refuses(command, ValueError, "^short.fbin: 5 columns, expected d =")
    refuses(
        "sweep a.index -q q.fbin --base empty.npy",
        ValueError,
        "^empty.npy: no vectors, expected those of the index",
    )


def test_what_has_no_parts(folder: Any) -> None:
    refuses("info q.fbin:x", ValueError, r"^q.fbin:x: .*\.fbin has no parts")


def test_pipes_are_no_files(folder: Any) -> None:
    os.mkfifo("pipe.fbin")
    refuses("info pipe.fbin", OSError, "^pipe.fbin: a pipe or a device")


def test_the_mixture_is_not_overwritten(folder: Any) -> None:
    before = pathlib.Path("a.index").read_bytes()
    refuses(
        "convert a.index -o ./a.index --to faiss",
        ValueError,
        "^a.index: an input",
    )
    assert pathlib.Path("a.index").read_bytes() == before


@pytest.mark.parametrize("json", [[], ["--json"]])
def test_facts_are_not_in_an_index_on_standard_output(
    json: list[str], folder: Any
) -> None:
    def convert(out: str) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "faiss_ext", "convert", "a.index"]
            + ["--to", "faiss", "-o", out, *json],
            capture_output=True,
            check=True,
            timeout=300,
        )

    assert b"ntotal" in convert("b.index").stdout
    piped = convert("/dev/stdout")
    assert piped.stdout == pathlib.Path("b.index").read_bytes()
    assert b"ntotal" in piped.stderr


def test_reports_are_not_in_a_file_on_standard_output(folder: Any) -> None:
    def run(*args: str) -> Any:
        return subprocess.run(
            [sys.executable, "-m", "faiss_ext", *args],
            capture_output=True,
            check=True,
            timeout=300,
        )

    out = run("calibrate", "a.index", "q.fbin", "-o", "b.index").stdout
    piped = run("calibrate", "a.index", "q.fbin", "-o", "/dev/stdout")
    title = out.split()[0]
    assert title in piped.stderr
    assert title not in piped.stdout[-4000:]
    sweep = ["sweep", "a.index", "-q", "q.fbin", "--base", "base.fbin"]
    for json in ([], ["--json"]):
        piped = run(*sweep, "--html", "/dev/stdout", *json)
        assert piped.stdout.startswith(b"<!DOCTYPE html>")
        assert b"recall" in piped.stderr
