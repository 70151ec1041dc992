#!/usr/bin/env python3
"""Processor seconds of each step, beside docs/scale.md's formulas.

    scripts/build _core scale_bench && scripts/test_python -k nothing
    build/venv/bin/python bench/scale_seconds.py FOLDER --from SIFT.u8bin

The machine's constants are found at four sizes, with one thread; at
other sizes what they and the formulas say is compared with what is measured.
Each time is the least of a few. Of Dask's steps: what two workers of a thread
each spend. FOLDER is for files; measured.json in it keeps what was measured, and
what is there is not measured again.
"""

import argparse
import json
import os
import subprocess
import time
import warnings
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"

import numpy as np  # noqa: E402
from distributed import Client, LocalCluster  # noqa: E402
from scipy.optimize import nnls  # noqa: E402

import faiss_ext  # noqa: E402
from faiss_ext import _core  # noqa: E402
from faiss_ext import dask as fdask  # noqa: E402

ITERATIONS, QUERIES, NEIGHBOURS, CALIBRATED, WORKERS, FILES = 4, 1000, 10, 500, 2, 4
#: n, k, d: constants, and then what is compared.
FOUND = ((20000, 256, 128), (40000, 256, 64), (40000, 512, 128), (80000, 256, 128))
COMPARED = ((40000, 256, 128), (80000, 512, 64), (160000, 1024, 128))
QUERY = ("k d", "k", "cells", "codes", "chosen", "compared d", "1")
#: What multiplies a step's constants, as the formulas have them.
TERMS = {
    "train, an iteration": ("t k d", "t"),
    "partners": ("k^2 d", "k"),
    "add": ("n k d", "n d", "n"),
    "cells and codes": ("n d", "n"),
    "calibrate": ("nq n d", "nq n", "nq"),
    "merge_ondisk, beside cells and codes": ("n d", "n"),
    "a query": QUERY,
    "a query, lists on disk": QUERY,
    "Dask: fit, an iteration": ("t k d", "t", "blocks k d", "1"),
    "Dask: build": ("n k d", "n d", "n", "1"),
    "Dask: a query with params": QUERY,
    "Dask: a query with nprobe": ("k d", "lists d", "1"),
}


def least(run, turns=3):
    taken = []
    for _ in range(turns):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return min(taken)


def searches(index, queries, out, name, common, settings):
    """Of each setting: seconds a query, and what it looked at."""
    for setting in settings:
        params = faiss_ext.SearchParameters(**setting)
        faiss_ext.reset_stats()
        index.search(queries, NEIGHBOURS, params=params)
        counts = {what: value / len(queries) for what, value in faiss_ext.search_stats().items()}
        seconds = least(lambda p=params: index.search(queries, NEIGHBOURS, params=p), 9) / len(queries)
        d = index.d
        out.append((name, setting, seconds, common | {
            "cells": counts["n_cell_scores"], "codes": counts["n_codes"], "compared d": counts["ndis"] * d,
            # Of queries that go by codes; whole lists are read in their order.
            "chosen": counts["ndis"] if counts["n_codes"] else 0}))


def measure(base, shape, folder, args):
    """(step, setting, seconds, quantities)"""
    n, k, d = shape
    x = np.ascontiguousarray(base[:n, :d], dtype=np.float32)
    queries = x[:: n // QUERIES][:QUERIES] + np.float32(0.5)
    t, lists, nq = n // 2, 8 * k, CALIBRATED
    out = []

    def train(iterations):
        return least(lambda: _core.train(x[:t], None, k, hard_iterations=1, niter=iterations, tolerance=0, backend="cpu"))

    out.append(("train, an iteration", "", (train(1 + ITERATIONS) - train(1)) / ITERATIONS, {"t k d": t * k * d, "t": t}))
    said = subprocess.run([args.scale_bench, "partners", "--from", args.source, "-n", str(lists), "-d", str(d)],
                          check=True, capture_output=True, text=True).stdout
    out.append(("partners", "", float(said), {"k^2 d": lists**2 * d, "k": lists}))

    trained = faiss_ext.index_factory(d, f"GMM{k},Flat")
    trained.cp.niter = ITERATIONS
    trained.train(x[:t])
    trained.calibrate_on_add = False
    trained.cells_per_list = 1
    held = {}

    def add():
        held["index"] = faiss_ext.clone_index(trained)
        held["index"].add(x)

    rows = {"n k d": n * k * d, "n d": n * d, "n": n, "1": 1}
    out.append(("add", "", least(add), rows))
    plain = held["index"]

    def cells():
        held["index"] = faiss_ext.clone_index(plain)
        held["index"].cells_per_list = 0
        start = time.process_time()
        held["index"].maintain()
        return time.process_time() - start

    of_cells = min(cells() for _ in range(3))
    out.append(("cells and codes", "", of_cells, rows))
    index = held["index"]
    out.append(("calibrate", "", least(lambda: index.calibrate(queries[:nq])), {"nq n d": nq * n * d, "nq n": nq * n, "nq": nq}))
    common = {"k d": k * d, "k": k, "1": 1, "lists d": 4 * n / k * d}
    settings = (dict(nprobe=4), dict(nprobe=16), dict(target_recall=0.9))
    searches(index, queries, out, "a query", common, settings)

    parts = []
    for p in range(2):
        part = faiss_ext.clone_index(trained)
        part.add_with_ids(x[p * n // 2 : (p + 1) * n // 2], np.arange(p * n // 2, (p + 1) * n // 2))
        parts.append(str(folder / f"part{p}"))
        faiss_ext.write_index(part, parts[-1])

    def merge():
        held["disk"] = faiss_ext.clone_index(trained)
        held["disk"].cells_per_list = 0
        held["disk"]._core.merge_ondisk(parts, str(folder / "lists.ivfdata"), False)

    out.append(("merge_ondisk, beside cells and codes", "", least(merge) - of_cells, rows))
    held["disk"].calibrate(queries[:nq])
    searches(held["disk"], queries, out, "a query, lists on disk", common, settings)
    with_dask(x, queries, k, folder, out, rows, common, settings)
    return out


def with_dask(x, queries, k, folder, out, rows, common, settings):
    n, d = x.shape
    queries = np.tile(queries, (10, 1))  # workers spend some time on nothing
    files = []
    for i in range(FILES):
        files.append(folder / f"rows{i}.fbin")
        with open(files[-1], "wb") as file:
            np.array([n // FILES, d], np.int32).tofile(file)
            x[i * (n // FILES) : (i + 1) * (n // FILES)].tofile(file)
    with LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
        def spent(run, turns=3):
            taken = []
            for _ in range(turns):
                start = sum(client.run(time.process_time).values())
                run()
                taken.append(sum(client.run(time.process_time).values()) - start)
            return min(taken)

        def fit(iterations):
            # bytes: variances of 1e-6, of means with one vector, would want doubles
            fdask.fit(files, k, max_iter=iterations, tol=0, random_state=0, block_rows=n // 8,
                      means_init=x[:: n // k][:k], reg_covar=1)

        seconds = (spent(lambda: fit(1 + ITERATIONS)) - spent(lambda: fit(1))) / ITERATIONS
        out.append(("Dask: fit, an iteration", "", seconds, {"t k d": n * k * d, "t": n, "blocks k d": 8 * k * d, "1": 1}))

        def build():
            return fdask.build(files, f"GMM{k},Flat", folder / "shards", block_rows=n // 8, shard_rows=n // WORKERS,
                               sample_rows=16384)

        out.append(("Dask: build", "", spent(build), rows))
        manifest = build()
        merged = fdask.merge(manifest, on_disk=True)
        counted = []
        searches(merged, queries, counted, "", common, settings)
        for _, setting, _, quantities in counted:
            fdask.search(manifest, queries, NEIGHBOURS, params=setting)  # loads the shards
            seconds = spent(lambda s=setting: fdask.search(manifest, queries, NEIGHBOURS, params=s), 5) / len(queries)
            out.append(("Dask: a query with params", setting, seconds, quantities))
        fdask.search(manifest, queries, NEIGHBOURS, nprobe=4)
        seconds = spent(lambda: fdask.search(manifest, queries, NEIGHBOURS, nprobe=4), 5) / len(queries)
        out.append(("Dask: a query with nprobe", dict(nprobe=4), seconds, common))


def main():
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--from", dest="source", required=True)
    parser.add_argument("--scale-bench", default="build/bin/scale_bench")
    args = parser.parse_args()
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    n, d = np.fromfile(args.source, np.int32, 2)
    base = np.memmap(args.source, np.uint8, "r", 8, (n, d))
    kept = folder / "measured.json"
    measured = {tuple(map(int, shape.split())): m for shape, m in json.loads(kept.read_text()).items()} if kept.exists() else {}
    for shape in FOUND + COMPARED:
        if shape not in measured:
            measured[shape] = measure(base, shape, folder, args)
            kept.write_text(json.dumps({" ".join(map(str, s)): m for s, m in measured.items()}))
        print(f"{shape}, load {os.getloadavg()[0]:.0f}", flush=True)
        for name, setting, seconds, _ in measured[shape]:
            print(f"  {name} {setting or ''}: {seconds * 1e6:.2f} us", flush=True)
    for step, terms in TERMS.items():
        def table(shapes, step=step, terms=terms):
            found = [(shape, m) for shape in shapes for m in measured[shape] if m[0] == step]
            return found, np.array([[m[3][term] for term in terms] for _, m in found], float), np.array(
                [m[2] for _, m in found])

        _, quantities, seconds = table(FOUND)
        unit = quantities.max(axis=0)
        constants = nnls(quantities / unit / seconds[:, None], np.ones(len(seconds)))[0] / unit
        print(f"{step}: " + " + ".join(f"{c:.3g} {term}" for c, term in zip(constants, terms, strict=True) if c > 0))
        found, quantities, seconds = table(COMPARED)
        for (shape, m), expected in zip(found, quantities @ constants, strict=True):
            print(f"  {shape} {m[1] or ''}: {m[2]:.4g} s, by the formula {expected:.4g}, ratio {m[2] / expected:.2f}")


if __name__ == "__main__":
    main()
