"""The report of a sweep: one page that needs nothing else."""

from __future__ import annotations

import html
import json
import os
from typing import Any

from plotly.offline import get_plotlyjs

from ._files import replacing

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>%(title)s</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff;
        --line: #d7dce1; --soft: #57606a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6edf3; --paper: #0f1318; --line: #30363d;
          --soft: #9aa4af; } }
body { color: var(--ink); background: var(--paper); margin: 0 auto;
       padding: 1rem; max-width: 76rem;
       font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-bottom: 0; }
p { color: var(--soft); margin: .2rem 0 .6rem; }
.grid { display: grid; gap: 1rem;
        grid-template-columns:
          repeat(auto-fit, minmax(min(100%%, 30rem), 1fr)); }
.grid > section { min-width: 0; }
.plot { height: 24rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%%; font-size: .9rem; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem;
         text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) {
  text-align: left; }
</style>
<script>%(plotly)s</script>
</head>
<body>
<h1>%(title)s</h1>
<p>%(subtitle)s</p>
<div class="grid">
<section><h2>Recall and queries a second</h2>
<p>All queries at once; up and to the right is better.</p>
<div class="plot" id="qps"></div></section>
<section><h2>Recall and distances</h2>
<p>Distances computed for a query; up and to the left is better.</p>
<div class="plot" id="distances"></div></section>
<section><h2>Promised and reached</h2>
<p>Target of the calibration against the recall of these queries.</p>
<div class="plot" id="promise"></div></section>
<section><h2>List sizes</h2>
<p>Vectors in each list, largest first.</p>
<div class="plot" id="lists"></div></section>
<section><h2>Memory</h2>
<p>Bytes of the index's file for each vector.</p>
<div class="plot" id="memory"></div></section>
</div>
<h2>The numbers</h2>
<div class="scroll"><table><thead><tr><th>index</th><th>setting</th>
<th>recall@%(k)d</th><th>queries/s</th><th>distances</th></tr></thead>
<tbody>%(rows)s</tbody></table></div>
<script>
const results = %(results)s;
const dark = matchMedia("(prefers-color-scheme: dark)");
const palette = ["#0a6ebd", "#d9480f", "#2b8a3e", "#9c36b5", "#b08800"];
const color = i => palette[i %% palette.length];
const sorted = (rows, key) => rows.slice().sort((a, b) => a[key] - b[key]);
const families = [["nprobe", "dot", "circle"],
                  ["target_recall", "solid", "diamond"],
                  ["exhaustive", "solid", "square"]];
// Plotly reads tags in names.
const label = r => (r.factory || r.file).replace(/&/g, "&amp;")
  .replace(/</g, "&lt;");
const of = (r, family) => r.rows.filter(w => w.setting.startsWith(family));
function curves(key) {
  return results.flatMap((r, i) => families.flatMap(([f, dash, symbol]) => {
    const rows = sorted(of(r, f), "recall");
    return rows.length ? [{
      x: rows.map(w => w[key]), y: rows.map(w => w.recall),
      text: rows.map(w => w.setting), name: label(r) + ", " + f,
      mode: "lines+markers", line: {color: color(i), dash},
      marker: {symbol, size: 7}, hovertemplate: "%%{text}<br>recall " +
        "%%{y:.4f}<br>" + key + " %%{x:,.0f}<extra></extra>"}] : [];
  }));
}
const pictures = {
  qps: [curves("qps"), {xaxis: {type: "log", title: {text: "queries/s"}},
                        yaxis: {title: {text: "recall@%(k)d"}}}],
  distances: [curves("distances"),
    {xaxis: {type: "log", title: {text: "distances a query"}},
     yaxis: {title: {text: "recall@%(k)d"}}}],
  promise: [[{x: [0.4, 1], y: [0.4, 1], mode: "lines", hoverinfo: "skip",
              line: {color: "#888888", dash: "dash"}, name: "as promised"}]
    .concat(results.flatMap((r, i) => {
      const rows = of(r, "target_recall");
      return rows.length ? [{x: rows.map(w => w.target_recall),
        y: rows.map(w => w.recall), name: label(r), mode: "lines+markers",
        line: {color: color(i)}, hovertemplate:
          "target %%{x}<br>reached %%{y:.4f}<extra></extra>"}] : [];
    })), {xaxis: {title: {text: "target_recall"}},
          yaxis: {title: {text: "recall@%(k)d"}}}],
  lists: [results.filter(r => r.list_sizes.length).map((r, i) => {
    const sizes = r.list_sizes.slice().sort((a, b) => b - a);
    return {y: sizes, name: label(r), mode: "lines",
            line: {color: color(i)}, hovertemplate:
              "list %%{x}: %%{y:,} vectors<extra></extra>"};
  }), {xaxis: {title: {text: "list"}}, yaxis: {title: {text: "vectors"}}}],
  memory: [[{type: "bar", x: results.map(label),
    y: results.map(r => r.bytes / Math.max(r.ntotal, 1)),
    marker: {color: results.map((r, i) => color(i))}, hovertemplate:
      "%%{x}: %%{y:,.0f} bytes a vector<extra></extra>"}],
    {yaxis: {title: {text: "bytes a vector"}}, showlegend: false}],
};
function draw() {
  const ink = dark.matches ? "#e6edf3" : "#1b1f24";
  const grid = dark.matches ? "#30363d" : "#d7dce1";
  for (const [id, [data, layout]] of Object.entries(pictures)) {
    const axis = a => Object.assign(
      {gridcolor: grid, zerolinecolor: grid, automargin: true}, a);
    Plotly.react(id, data, Object.assign({}, layout, {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: {color: ink}, margin: {t: 10, r: 10, b: 40, l: 50},
      legend: {orientation: "h", y: -0.27, yanchor: "top"},
      hovermode: "closest",
      xaxis: axis(layout.xaxis), yaxis: axis(layout.yaxis)}),
      {responsive: true, displayModeBar: false});
  }
}
draw();
dark.addEventListener("change", draw);
</script>
</body>
</html>
"""


def write_report(
    path: str | os.PathLike[str],
    results: list[dict[str, Any]],
    *,
    k: int,
    nq: int,
) -> None:
    """Writes the page.

    Parameters
    ----------
    path : str or path
    results : list of dict
        As `faiss-ext sweep --json` prints them.
    k, nq : int
        Neighbours and queries.
    """
    rows = []
    for result in results:
        for row in result["rows"]:
            cells = (
                result["factory"] or result["file"],
                row["setting"],
                f"{row['recall']:.4f}",
                f"{row['qps']:,.0f}",
                f"{row['distances']:,.0f}",
            )
            rows.append(
                "<tr>"
                + "".join(f"<td>{html.escape(c)}</td>" for c in cells)
                + "</tr>"
            )
    first = results[0]
    names = ", ".join(r["factory"] or r["file"] for r in results)
    subtitle = (
        f"{first['ntotal']:,} vectors of {first['d']} dimensions, {nq:,} "
        f"queries, {k} neighbours"
    )
    # "</" would end the script.
    data = json.dumps(results).replace("</", "<\\/")
    page = _PAGE % {
        "title": html.escape(f"Sweep of {names}"),
        "subtitle": html.escape(subtitle),
        "plotly": get_plotlyjs().replace("</script", "<\\/script"),
        "k": k,
        "rows": "\n".join(rows),
        "results": data,
    }
    with replacing(path) as file:
        file.write(page.encode())
