"""What the command line prints: facts, and bars with their rates."""

from __future__ import annotations

import json as json_module
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

# Names of files are no markup.
stderr = Console(stderr=True, markup=False, emoji=False, highlight=False)
stdout = Console(markup=False, emoji=False, highlight=False)


def _is_stdout(path: str | os.PathLike[str] | None) -> bool:
    try:
        return path is not None and os.path.samestat(
            os.stat(path), os.fstat(1)
        )
    except OSError:
        return False


def beside(path: Any) -> Console:
    """Standard error where the file that is written is standard output."""
    return stderr if _is_stdout(path) else stdout


def say(json: bool, facts: dict[str, Any]) -> None:
    """What is told beside the file that was written."""
    console = beside(facts.get("out"))
    if json:
        print(json_module.dumps(facts), file=console.file)
        return
    table = Table(show_header=False, box=None)
    for name, value in facts.items():
        if isinstance(value, float):
            value = f"{value:.4g}"
        elif isinstance(value, int) and not isinstance(value, bool):
            value = f"{value:,}"
        table.add_row(name, str(value))
    console.print(table)


def print_tables(
    console: Console, results: list[dict[str, Any]], k: int
) -> None:
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
        console.print(table)


@contextmanager
def progress(
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
