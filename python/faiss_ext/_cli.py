"""The command line, faiss-ext."""

from __future__ import annotations

import json as json_module
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from . import _arrays, _core, _files, _sweep
from ._index import (
    Index,
    index_factory,
    read_index,
    swap_to_gmm,
    write_index,
)
from ._selectors import SearchParameters

app = typer.Typer(
    help="Gaussian mixtures where FAISS's IVF indexes use k-means.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
stderr = Console(stderr=True)
stdout = Console()

_FILES = "Vectors: " + ", ".join(_files.ENDINGS) + "; FILE:NAME names a part"


class Metric(str, Enum):
    """How vectors are compared."""

    l2 = "l2"
    ip = "ip"


class To(str, Enum):
    """What convert makes."""

    gmm = "gmm"
    faiss = "faiss"


Base = Annotated[str, typer.Argument(help=_FILES)]
IndexFile = Annotated[Path, typer.Argument(help="A file of an index")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The file to write")]
Json = Annotated[bool, typer.Option("--json", help="Prints JSON")]
K = Annotated[int, typer.Option("-k", min=1, help="Neighbours")]
Queries = Annotated[
    Optional[str], typer.Option("--queries", "-q", help="Queries, a file")
]


def _say(json: bool, facts: dict[str, Any]) -> None:
    if json:
        print(json_module.dumps(facts))
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if isinstance(value, float):
            value = f"{value:.4g}"
        elif isinstance(value, int) and not isinstance(value, bool):
            value = f"{value:,}"
        table.add_row(name, str(value))
    stdout.print(table)


@contextmanager
def _progress(
    text: str, total: int, quiet: bool
) -> Iterator[Callable[[int], None]]:
    """A bar with its rate, on standard error."""
    begin = time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, disable=quiet) as bar:
        task = bar.add_task(text, total=total, rate="")
        done = 0

        def advance(n: int) -> None:
            nonlocal done
            done += n
            rate = done / max(time.perf_counter() - begin, 1e-9)
            bar.update(task, advance=n, rate=f"{rate:,.0f}/s")

        yield advance


def _counted(
    vectors: _files.Vectors, advance: Callable[[int], None]
) -> Iterator[Any]:
    for block in vectors.blocks():
        yield block
        advance(len(block))


def _check_out(*paths: Path | None) -> None:
    """What cannot be written is said before the work."""
    for path in paths:
        if path is None:
            continue
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path}: its folder is not there")
        if path.is_dir():
            raise IsADirectoryError(f"{path}: a folder, expected a file")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"{path}: its folder cannot be written to")


def _check_target(target_recall: float | None) -> None:
    if target_recall is not None:
        SearchParameters(target_recall=target_recall)


def _write(index: Index, out: Path) -> int:
    """A new file in the place of an old one, or the old one."""
    partial = out.with_name(out.name + ".partial")
    try:
        write_index(index, partial)
        os.replace(partial, out)
    except _core.FaissError as error:
        raise OSError(str(error)) from None
    finally:
        partial.unlink(missing_ok=True)
    return out.stat().st_size


def _train(
    factory: str,
    base: _files.Vectors,
    metric: Metric,
    niter: int | None,
    seed: int | None,
    sample: int | None,
    quiet: bool,
) -> Index:
    code = (
        _core.METRIC_L2 if metric is Metric.l2 else _core.METRIC_INNER_PRODUCT
    )
    index = index_factory(base.d, factory, code)
    if index._core.has_lists():
        if niter is not None:
            index.cp.niter = niter
        if seed is not None:
            index.cp.seed = seed
    if index.is_trained:
        return index
    with _progress("reading for training", base.n, quiet) as advance:
        blocks = _counted(base, advance)
        if sample is None:
            index.train(blocks)
        else:
            index.train(
                _arrays.sample_blocks(
                    blocks, "base", base.d, sample, seed or 1234
                )
            )
    return index


def _facts(index: Index) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "factory": index.factory_string,
        "ntotal": index.ntotal,
        "d": index.d,
        "metric": "l2" if index.metric_type == _core.METRIC_L2 else "ip",
        "trained": index.is_trained,
        "mixture": index.has_mixture,
    }
    if index._core.has_lists():
        facts.update(
            nlist=index.nlist, nprobe=index.nprobe, code_size=index.code_size
        )
        if index.ntotal:
            sizes = index.list_sizes()
            facts["largest_list"] = int(sizes.max())
            facts["empty_lists"] = int((sizes == 0).sum())
            facts["imbalance"] = float(
                len(sizes) * np.square(sizes / sizes.sum()).sum()
            )
    if index.has_mixture:
        c = index.calibration
        facts.update(
            covariance=index.covariance_type,
            target_recall=index.target_recall,
            calibrated=c.fitted,
        )
        if c.fitted:
            facts.update(
                calibrated_k=c.k,
                calibrated_queries=c.nq,
                calibrated_on_own_vectors=c.own_queries,
            )
    return facts


@app.command()
def info(file: Path, json: Json = False) -> None:
    """What is in a file of an index or of vectors."""
    name = str(file).rsplit(":", 1)[0] if not file.exists() else str(file)
    if Path(name).suffix.lower() in _files.ENDINGS:
        vectors = _files.open_vectors(file)
        facts: dict[str, Any] = {
            "n": vectors.n,
            "d": vectors.d,
            "dtype": vectors.dtype.name,
        }
    else:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file")
        facts = _facts(read_index(file))
    _say(json, {"file": str(file), **facts})


Niter = Annotated[
    Optional[int], typer.Option(min=0, help="EM iterations at most")
]
Seed = Annotated[Optional[int], typer.Option(help="Of training")]
Sample = Annotated[
    Optional[int], typer.Option(min=1, help="Vectors that train")
]
MetricOption = Annotated[Metric, typer.Option(help="How vectors compare")]


@app.command()
def train(
    factory: str,
    base: Base,
    out: Out,
    metric: MetricOption = Metric.l2,
    niter: Niter = None,
    seed: Seed = None,
    sample: Sample = None,
    json: Json = False,
) -> None:
    """Trains an index and writes it without vectors."""
    begin = time.perf_counter()
    _check_out(out)
    vectors = _files.open_vectors(base)
    index = _train(factory, vectors, metric, niter, seed, sample, json)
    size = _write(index, out)
    _say(
        json,
        {
            "out": str(out),
            "bytes": size,
            "seconds": time.perf_counter() - begin,
            **_facts(index),
        },
    )


def _add(index: Index, vectors: _files.Vectors, quiet: bool) -> None:
    with _progress("adding", vectors.n, quiet) as advance:
        index.add(_counted(vectors, advance))


@app.command()
def build(
    factory: str,
    base: Base,
    out: Out,
    queries: Queries = None,
    k: K = 10,
    metric: MetricOption = Metric.l2,
    niter: Niter = None,
    seed: Seed = None,
    sample: Sample = None,
    target_recall: Annotated[
        Optional[float], typer.Option(help="Kept in the file")
    ] = None,
    json: Json = False,
) -> None:
    """Trains an index, adds all vectors, calibrates, writes."""
    begin = time.perf_counter()
    _check_out(out)
    _check_target(target_recall)
    vectors = _files.open_vectors(base)
    # What is wrong with queries is said before the work.
    asked = None if queries is None else _files.open_vectors(queries, "test")
    if asked is not None and not index_factory(vectors.d, factory).has_mixture:
        raise ValueError(
            f"--queries: they calibrate a GMM index, and {factory} is none"
        )
    index = _train(factory, vectors, metric, niter, seed, sample, json)
    _add(index, vectors, json)
    if asked is not None:
        index.calibrate(asked.array(), k)
    if target_recall is not None:
        index.target_recall = target_recall
    size = _write(index, out)
    _say(
        json,
        {
            "out": str(out),
            "bytes": size,
            "seconds": time.perf_counter() - begin,
            **_facts(index),
        },
    )


@app.command()
def add(
    index_file: IndexFile,
    base: Base,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", "-o", help="Instead of the index's own file"),
    ] = None,
    json: Json = False,
) -> None:
    """Adds vectors to an index, with the ids that come next."""
    _check_out(out)
    index = _open(index_file)
    vectors = _files.open_vectors(base)
    _add(index, vectors, json)
    size = _write(index, out or index_file)
    _say(
        json,
        {
            "out": str(out or index_file),
            "bytes": size,
            "added": vectors.n,
            "ntotal": index.ntotal,
        },
    )


def _open(file: Path) -> Index:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    return read_index(file)


@app.command()
def calibrate(
    index_file: IndexFile,
    queries: Queries = None,
    k: K = 10,
    nq: Annotated[
        int, typer.Option(min=20, help="Vectors of the index as queries")
    ] = 500,
    target_recall: Annotated[
        Optional[float], typer.Option(help="Kept in the file")
    ] = None,
    out: Annotated[
        Optional[Path],
        typer.Option("--out", "-o", help="Instead of the index's own file"),
    ] = None,
    json: Json = False,
) -> None:
    """Fits order and stop of searches to queries like yours."""
    _check_out(out)
    _check_target(target_recall)
    index = _open(index_file)
    if queries is None:
        index.calibrate(k=k, nq=nq)
    else:
        index.calibrate(_files.open_vectors(queries, "test").array(), k)
    if target_recall is not None:
        index.target_recall = target_recall
    _write(index, out or index_file)
    choices = {}
    for target in (0.8, 0.9, 0.95, 0.99):
        choice = index.calibration.choose(target)
        choices[f"{target:g}"] = {
            "by_codes": choice.by_codes,
            "budget": choice.budget,
            "recall": choice.recall,
            "distances": choice.distances,
            "cost": choice.cost,
        }
    if json:
        _say(True, {"out": str(out or index_file), "choices": choices})
    else:
        stdout.print(index.calibration.report(), highlight=False)


def _parameters(
    nprobe: int | None, target_recall: float | None, max_codes: int | None
) -> SearchParameters | None:
    if nprobe is None and target_recall is None and max_codes is None:
        return None
    return SearchParameters(
        nprobe=nprobe, target_recall=target_recall, max_codes=max_codes
    )


@app.command()
def search(
    index_file: IndexFile,
    queries: Base,
    out: Out,
    k: K = 10,
    distances_out: Annotated[
        Optional[Path], typer.Option(help="Distances, too: .npy or .fbin")
    ] = None,
    nprobe: Annotated[Optional[int], typer.Option(min=1)] = None,
    target_recall: Annotated[Optional[float], typer.Option()] = None,
    max_codes: Annotated[Optional[int], typer.Option(min=0)] = None,
    groundtruth: Annotated[
        Optional[str], typer.Option(help="True ids: says the recall, too")
    ] = None,
    json: Json = False,
) -> None:
    """Searches, and writes the ids found (.npy or .ibin)."""
    _check_out(out, distances_out)
    for path in filter(None, (out, distances_out)):
        _files.check_matrix_name(path)
    params = _parameters(nprobe, target_recall, max_codes)
    index = _open(index_file)
    vectors = _files.open_vectors(queries, "test")
    truth = None
    if groundtruth is not None:
        truth = _truth(groundtruth, None, vectors, k, index)
    D = np.empty((vectors.n, k), np.float32)
    labels = np.empty((vectors.n, k), np.int64)
    at = 0
    seconds = 0.0
    with _progress("searching", vectors.n, json) as advance:
        for block in vectors.blocks(4096):
            begin = time.perf_counter()
            end = at + len(block)
            D[at:end], labels[at:end] = index.search(block, k, params=params)
            seconds += time.perf_counter() - begin
            at = end
            advance(len(block))
    _files.write_matrix(out, labels)
    if distances_out is not None:
        _files.write_matrix(distances_out, D)
    facts: dict[str, Any] = {
        "out": str(out),
        "queries": vectors.n,
        "k": k,
        "seconds": seconds,
        "qps": vectors.n / max(seconds, 1e-9),
    }
    if truth is not None:
        facts["recall"] = _sweep.recall_of(labels, truth)
    _say(json, facts)


def _truth(
    groundtruth: str | None,
    base: str | None,
    queries: _files.Vectors,
    k: int,
    index: Index,
) -> np.ndarray[Any, Any]:
    if groundtruth is not None:
        truth = _files.open_vectors(groundtruth, "neighbors").array()
        if truth.shape[0] != queries.n or truth.shape[1] < k:
            raise ValueError(
                f"{groundtruth}: shape {truth.shape}, expected {queries.n} "
                f"rows of at least k = {k}"
            )
        return truth[:, :k]
    if base is None:
        raise ValueError(
            "expected --groundtruth, or --base to find the neighbours in"
        )
    return _sweep.exact_neighbors(
        _files.open_vectors(base).blocks(),
        queries.array(),
        k,
        index.metric_type,
    )


@app.command()
def sweep(
    index_files: Annotated[
        list[Path], typer.Argument(help="Files of indexes, one or more")
    ],
    queries: Annotated[str, typer.Option("--queries", "-q", help=_FILES)],
    groundtruth: Annotated[
        Optional[str], typer.Option(help="True ids of the neighbours")
    ] = None,
    base: Annotated[
        Optional[str], typer.Option(help="To find the neighbours in")
    ] = None,
    k: K = 10,
    repeat: Annotated[int, typer.Option(min=1)] = 3,
    html: Annotated[
        Optional[Path], typer.Option(help="A report with pictures")
    ] = None,
    json: Json = False,
) -> None:
    """Recall against queries a second and distances, for many settings."""
    _check_out(html)
    vectors = _files.open_vectors(queries, "test")
    xq = _arrays.floats(vectors.array(), "queries")
    truth = None
    results = []
    for file in index_files:
        index = _open(file)
        if truth is None:
            truth = _truth(groundtruth, base, vectors, k, index)
        stderr.print(f"{file}: {index!r}", highlight=False, markup=False)
        rows = _sweep.sweep(index, xq, truth, repeat=repeat)
        sizes = index.list_sizes() if index._core.has_lists() else None
        results.append(
            {
                "file": str(file),
                "bytes": file.stat().st_size,
                **_facts(index),
                "list_sizes": [] if sizes is None else sizes.tolist(),
                "rows": rows,
            }
        )
    if html is not None:
        from ._report import write_report

        write_report(html, results, k=k, nq=len(xq))
    if json:
        print(json_module.dumps({"k": k, "nq": len(xq), "results": results}))
        return
    for result in results:
        table = Table(title=f"{result['file']}: {result['factory']}")
        for name in ("setting", f"recall@{k}", "queries/s", "distances"):
            table.add_column(name, justify="right")
        for row in result["rows"]:
            table.add_row(
                row["setting"],
                f"{row['recall']:.4f}",
                f"{row['qps']:,.0f}",
                f"{row['distances']:,.0f}",
            )
        stdout.print(table)


@app.command()
def convert(
    index_file: IndexFile,
    out: Out,
    to: Annotated[To, typer.Option(help="gmm swaps, faiss takes it back")],
    covariance: Annotated[
        str, typer.Option(help="spherical, diag or tied_spherical")
    ] = "spherical",
    json: Json = False,
) -> None:
    """A stock IVF file to a GMM one, or back."""
    _check_out(out)
    index = _open(index_file)
    if to is To.gmm:
        swapped = swap_to_gmm(index, covariance)
        size = _write(swapped, out)
        facts = _facts(swapped)
    else:
        data = _core.serialize_stock(index._core)
        partial = out.with_name(out.name + ".partial")
        try:
            data.tofile(partial)
            os.replace(partial, out)
        finally:
            partial.unlink(missing_ok=True)
        size = out.stat().st_size
        facts = _facts(read_index(out))
    _say(json, {"out": str(out), "bytes": size, **facts})


def main() -> None:
    """Exit codes: 1 wrong input, 2 wrong usage, 3 a file that cannot be read
    or written, 130 Ctrl-C."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        stderr.print(f"faiss-ext: {error}", markup=False, highlight=False)
        sys.exit(3)
    except (ValueError, TypeError, ImportError) as error:
        stderr.print(f"faiss-ext: {error}", markup=False, highlight=False)
        sys.exit(1)
