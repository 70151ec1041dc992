"""The sweep's page, in a browser."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from browser import CHROMIUM, Browser

pytest.importorskip("plotly")

from faiss_ext._report import write_report  # noqa: E402


def rows(factor: Any) -> Any:
    made = [
        {
            "setting": f"nprobe={n}",
            "target_recall": None,
            "nprobe": n,
            "recall": 1 - 0.5 / n,
            "qps": 1000 * factor / n,
            "distances": 100 * n / factor,
        }
        for n in (1, 2, 4, 8)
    ]
    made.append(
        {
            "setting": "target_recall=0.9",
            "target_recall": 0.9,
            "nprobe": None,
            "recall": 0.91,
            "qps": 800 * factor,
            "distances": 120,
        }
    )
    return made


@pytest.fixture
def page(tmp_path: pathlib.Path) -> Any:
    results = [
        {
            "file": f"{name}.index",
            "factory": name,
            "bytes": 10**6,
            "ntotal": 2000,
            "d": 128,
            "list_sizes": [100, 300, 200],
            "rows": rows(factor),
        }
        for name, factor in (("GMM16,Flat", 3), ("</script><b>", 1))
    ]
    write_report(tmp_path / "r.html", results, k=10, nq=200)
    return tmp_path / "r.html"


def test_the_page_needs_nothing_else_and_escapes_names(page: Any) -> None:
    text = page.read_text()
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert "<script" not in own
    assert not re.search(r'(src|href)="(https?:)?//', own)
    assert "&lt;/script&gt;&lt;b&gt;" in own
    assert "</script><b>" not in text
    assert "0.9100" in own


PICTURES = ("qps", "distances", "promise", "lists", "memory")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("websocket")
    if CHROMIUM is None:
        pytest.skip("no chromium")
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Kept where SCREENSHOTS says."""
    folder = os.environ.get("SCREENSHOTS")
    path = pathlib.Path(folder or tmp_path_factory.mktemp("screenshots"))
    path.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_it(
    page: Any, width: Any, scheme: Any, chromium: Any, screenshots: Any
) -> None:
    chromium.errors.clear()
    chromium.open(page.as_uri(), width, 900, scheme == "dark")
    for name in PICTURES:
        chromium.wait(f"document.querySelector('#{name} .main-svg')")
    # Nothing is wider than the window; the table scrolls in itself.
    assert chromium.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = chromium.evaluate(
        "(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))"
    )
    light = ("rgb(27, 31, 36)", "rgb(255, 255, 255)")
    dark = ("rgb(230, 237, 243)", "rgb(15, 19, 24)")
    assert (ink, paper) == (dark if scheme == "dark" else light)
    names = chromium.evaluate(
        "document.querySelector('#qps .legend').textContent"
    )
    assert "</script><b>, nprobe" in names
    axis = chromium.evaluate(
        "getComputedStyle(document.querySelector('#qps .xtick text')).fill"
    )
    assert axis == ink
    chromium.screenshot(screenshots / f"report-{scheme}-{width}.png")
    assert not chromium.errors


@pytest.mark.slow
def test_hovering_names_the_setting(
    page: Any, chromium: Any, screenshots: Any
) -> None:
    chromium.errors.clear()
    chromium.open(page.as_uri(), 1300, 900, False)
    chromium.wait("document.querySelector('#qps .points path')")
    assert (
        chromium.evaluate("document.querySelectorAll('.hovertext').length")
        == 0
    )
    x, y = chromium.evaluate(
        "(b => [b.x + b.width / 2, b.y + b.height / 2])("
        "document.querySelector('#qps .points path').getBoundingClientRect())"
    )
    chromium.move_to(x - 40, y - 40)
    chromium.move_to(x, y)
    chromium.wait("document.querySelector('#qps .hovertext')")
    text = chromium.evaluate(
        "document.querySelector('#qps .hovertext').textContent"
    )
    assert re.search(r"nprobe=\d.*recall 0\.\d{4}.*qps [\d,]+", text)
    chromium.screenshot(screenshots / "report-hover.png")
    assert not chromium.errors


@pytest.mark.slow
def test_it_follows_a_change_of_the_scheme(page: Any, chromium: Any) -> None:
    chromium.open(page.as_uri(), 1300, 900, False)
    chromium.wait("document.querySelector('#qps .xtick text')")
    chromium.call(
        "Emulation.setEmulatedMedia",
        features=[{"name": "prefers-color-scheme", "value": "dark"}],
    )
    chromium.wait(
        "getComputedStyle(document.querySelector('#qps .xtick text')).fill"
        " === 'rgb(230, 237, 243)'"
    )
