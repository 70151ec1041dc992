"""The sweep's page, in a browser."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

pytest.importorskip("plotly")

from faiss_ext._report import write_report  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


def rows(factor):
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
def page(tmp_path):
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


def test_the_page_needs_nothing_else_and_escapes_names(page):
    text = page.read_text()
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    assert "<script" not in own
    assert not re.search(r'(src|href)="(https?:)?//', own)
    assert "&lt;/script&gt;&lt;b&gt;" in own
    assert "</script><b>" not in text
    assert "0.9100" in own


@pytest.mark.skipif(BROWSER is None, reason="no chromium")
@pytest.mark.parametrize("width", [400, 1300])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_draws_it(page, width, scheme, tmp_path):
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--virtual-time-budget=8000",
            f"--user-data-dir={tmp_path}/profile",
            f"--window-size={width},2000",
            "--blink-settings=preferredColorScheme="
            + ("0" if scheme == "dark" else "1"),
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert not re.findall(r".*:CONSOLE.*", done.stderr)
    for name in ("qps", "distances", "promise", "lists", "memory"):
        drawn = re.search(rf'id="{name}".*?main-svg', done.stdout, re.S)
        assert drawn, name
    ink = "rgb(230, 237, 243)" if scheme == "dark" else "rgb(27, 31, 36)"
    assert ink in done.stdout
