"""The command line, faiss-ext."""

from __future__ import annotations

import io
import json as json_module
import sys
import time
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import numpy as np
import typer

from . import _arrays, _core, _files, _sweep
from ._factory import index_factory, swap_to_gmm
from ._index import deserialize_index
from ._selectors import SearchParameters
from ._steps import (
    LEAST_QUERIES,
    Metric,
    add_vectors,
    check_out,
    check_target,
    facts_of,
    open_index,
    open_queries,
    open_rows,
    read_finite,
    train_index,
    true_neighbors,
    write_file,
)
from ._terminal import beside, print_tables, progress, say, stderr, stdout

app = typer.Typer(
    help="Gaussian mixtures where FAISS's IVF indexes use k-means.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_INT_MAX = 2**31 - 1
_FILES = "Vectors: " + ", ".join(_files.ENDINGS) + "; FILE:NAME names a part"


class To(str, Enum):
    """What convert makes."""

    gmm = "gmm"
    faiss = "faiss"


Base = Annotated[str, typer.Argument(help=_FILES)]
# What is not readable is said by who reads it, and an output need not be.
IndexFile = Annotated[
    Path, typer.Argument(readable=False, help="A file of an index")
]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", readable=False, help="The file to write"),
]
NewFile = Annotated[
    Optional[Path],
    typer.Option(
        "--out", "-o", readable=False, help="Instead of the index's own file"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Prints JSON")]
K = Annotated[int, typer.Option("-k", min=1, max=_INT_MAX, help="Neighbours")]
Queries = Annotated[
    Optional[str], typer.Option("--queries", "-q", help="Queries, a file")
]


def _say_version(wanted: bool) -> None:
    if wanted:
        stdout.print(
            f"faiss-ext {_core.__version__}, FAISS {_core.faiss_version}, "
            f"{'with' if _core.cuda_available() else 'without'} CUDA"
        )
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_say_version,
            help="Show versions and exit.",
        ),
    ] = False,
) -> None:
    pass


@app.command()
def info(
    file: Annotated[Path, typer.Argument(readable=False)], json: Json = False
) -> None:
    """What is in a file of an index or of vectors."""
    name = _files.split_name(file)[0]
    if Path(name).suffix.lower() in _files.ENDINGS:
        vectors = _files.open_vectors(file)
        facts: dict[str, Any] = {
            "n": vectors.n,
            "d": vectors.d,
            "dtype": vectors.dtype.name,
        }
    else:
        facts = facts_of(open_index(file))
    say(json, {"file": str(file), **facts})


Niter = Annotated[
    Optional[int],
    typer.Option(min=0, max=_INT_MAX, help="EM iterations at most"),
]
Seed = Annotated[
    Optional[int],
    typer.Option(min=-_INT_MAX, max=_INT_MAX, help="Of training"),
]
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
    check_out(out, inputs=[base])
    vectors = open_rows(base)
    index = train_index(factory, vectors, metric, niter, seed, sample, json)
    size = write_file(index, out)
    say(
        json,
        {
            "out": str(out),
            "bytes": size,
            "seconds": time.perf_counter() - begin,
            **facts_of(index),
        },
    )


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
    check_out(out, inputs=[base, queries])
    check_target(target_recall)
    vectors = open_rows(base)
    # What is wrong with queries is said before the work.
    asked = None
    if queries is not None:
        asked = read_finite(open_queries(queries, vectors.d, LEAST_QUERIES))
        if k >= vectors.n:
            raise ValueError(
                f"-k {k}: expected fewer than the {vectors.n} vectors"
            )
    for option, given in (
        ("--queries", queries),
        ("--target-recall", target_recall),
    ):
        if given is not None and not (
            index_factory(vectors.d, factory).has_mixture
        ):
            raise ValueError(
                f"{option} = {given}: for a GMM index, and {factory} is none"
            )
    index = train_index(factory, vectors, metric, niter, seed, sample, json)
    add_vectors(index, vectors, json)
    if asked is not None:
        index.calibrate(asked, k)
    if target_recall is not None:
        index.target_recall = target_recall
    size = write_file(index, out)
    say(
        json,
        {
            "out": str(out),
            "bytes": size,
            "seconds": time.perf_counter() - begin,
            **facts_of(index),
        },
    )


@app.command()
def add(
    index_file: IndexFile,
    base: Base,
    out: NewFile = None,
    json: Json = False,
) -> None:
    """Adds vectors to an index, with the ids that come next."""
    check_out(out or index_file, inputs=[base])
    index = open_index(index_file)
    vectors = open_rows(base, index.d)
    add_vectors(index, vectors, json)
    size = write_file(index, out or index_file)
    say(
        json,
        {
            "out": str(out or index_file),
            "bytes": size,
            "added": vectors.n,
            "ntotal": index.ntotal,
        },
    )


@app.command()
def calibrate(
    index_file: IndexFile,
    file: Annotated[
        Optional[str],
        typer.Argument(metavar="queries", help="The same as --queries"),
    ] = None,
    queries: Queries = None,
    k: K = 10,
    nq: Annotated[
        int,
        typer.Option(
            min=LEAST_QUERIES, help="Vectors of the index as queries"
        ),
    ] = 500,
    target_recall: Annotated[
        Optional[float], typer.Option(help="Kept in the file")
    ] = None,
    out: NewFile = None,
    json: Json = False,
) -> None:
    """Measures what a recall costs, on queries like yours."""
    if file is not None and queries is not None:
        raise ValueError(
            f"{file} and --queries {queries}: expected one file of queries"
        )
    queries = file if queries is None else queries
    check_out(out or index_file, inputs=[queries])
    check_target(target_recall)
    index = open_index(index_file)
    if queries is None:
        index.calibrate(k=k, nq=nq)
    else:
        vectors = open_queries(queries, index.d, LEAST_QUERIES)
        index.calibrate(read_finite(vectors), k)
    if target_recall is not None:
        index.target_recall = target_recall
    write_file(index, out or index_file)
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
        say(True, {"out": str(out or index_file), "choices": choices})
    else:
        beside(out).print(index.calibration.report())


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
        Optional[Path],
        typer.Option(readable=False, help="Distances, too: .npy or .fbin"),
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
    check_out(out, distances_out, inputs=[index_file, queries, groundtruth])
    _files.dtype_of_name(out, _files.IDS)
    if distances_out is not None:
        _files.dtype_of_name(distances_out, _files.DISTANCES)
    params = _parameters(nprobe, target_recall, max_codes)
    index = open_index(index_file)
    least = 0 if groundtruth is None else 1  # of none there is no recall
    vectors = open_queries(queries, index.d, least)
    truth = None
    if groundtruth is not None:
        truth = true_neighbors(groundtruth, None, vectors, k, index)
    D = np.empty((vectors.n, k), np.float32)
    labels = np.empty((vectors.n, k), np.int64)
    at = 0
    seconds = 0.0
    with (
        progress("searching", vectors.n, json) as advance,
        _sweep.set_to(index, params) as params,
    ):
        for block in vectors.blocks(4096):
            begin = time.perf_counter()
            end = at + len(block)
            with _arrays.block_of(queries, at):
                found = index.search(block, k, params=params)
            D[at:end], labels[at:end] = found
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
    say(json, facts)


@app.command()
def sweep(
    index_files: Annotated[
        list[Path],
        typer.Argument(readable=False, help="Files of indexes, one or more"),
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
        Optional[Path],
        typer.Option(readable=False, help="A report with pictures"),
    ] = None,
    json: Json = False,
) -> None:
    """Recall against queries a second and distances, for many settings."""
    check_out(html, inputs=[*index_files, queries, groundtruth, base])
    truth = None
    first = None
    results = []
    for file in index_files:
        index = open_index(file)
        kind = (index.d, index.metric_type)
        if truth is None:
            first = kind
            vectors = open_queries(queries, index.d)
            xq = read_finite(vectors)
            truth = true_neighbors(groundtruth, base, vectors, k, index)
        elif kind != first:
            raise ValueError(
                f"{file}: d and metric {kind}, expected {first} of "
                f"{index_files[0]}: its neighbours are others"
            )
        stderr.print(f"{file}: {index!r}", soft_wrap=True)
        if groundtruth is None and base is not None:
            there = open_rows(base).n
            if there != index.ntotal:
                stderr.print(
                    f"{base}: {there} vectors, where the index has "
                    f"{index.ntotal}: recall counts what only one of them has",
                    soft_wrap=True,
                )
        rows = _sweep.sweep(index, xq, truth, repeat=repeat)
        sizes = index.list_sizes() if index._core.has_lists() else None
        results.append(
            {
                "file": str(file),
                "bytes": file.stat().st_size,
                **facts_of(index),
                "list_sizes": [] if sizes is None else sizes.tolist(),
                "rows": rows,
            }
        )
    console = beside(html)
    if json:
        measured = {"k": k, "nq": len(xq), "results": results}
        print(json_module.dumps(measured), file=console.file)
    else:
        print_tables(console, results, k)
    if html is not None:  # what was measured is printed whatever comes
        from ._report import write_report

        write_report(html, results, k=k, nq=len(xq))


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
    # FAISS's file has no mixture: it must not replace the one that has.
    check_out(out, inputs=[index_file] if to is To.faiss else ())
    index = open_index(index_file)
    if to is To.gmm:
        swapped = swap_to_gmm(index, covariance)
        size = write_file(swapped, out)
        facts = facts_of(swapped)
    else:
        data = _core.serialize_stock(index._core)
        with _files.replacing(out) as file:
            file.write(data.data)
        size = len(data)
        facts = facts_of(deserialize_index(data))
    say(json, {"out": str(out), "bytes": size, **facts})


def main() -> None:
    """Exit codes: 1 wrong input, 2 wrong usage, 3 a file that cannot be read
    or written, 130 Ctrl-C."""
    # Names of files need not be text.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        stderr.print(f"faiss-ext: {error}", soft_wrap=True)
        sys.exit(3)
    except MemoryError as error:
        stderr.print(f"faiss-ext: out of memory: {error}", soft_wrap=True)
        sys.exit(1)
    except (ValueError, TypeError, ImportError) as error:
        stderr.print(f"faiss-ext: {error}", soft_wrap=True)
        sys.exit(1)
