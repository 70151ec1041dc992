#!/usr/bin/env python3
"""Microseconds that a search through Python takes beyond the same in C++.

    scripts/build python_overhead && scripts/test_python -k nothing
    build/venv/bin/python bench/python_overhead.py --json out.json

One thread; Python and the C++ program take turns on one index file, and of each
query (and of all 1,000 at once) the least time counts. The same queries again
and again lie in the caches: what is left is the overhead.
"""

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402

import faiss_ext  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
K = 10


def read(name):
    path = ROOT / "bench" / "data" / name
    n, d = np.fromfile(path, np.uint32, 2)
    rows = np.fromfile(path, np.uint8, offset=8).reshape(n, d)
    return rows.astype(np.float32)


def measure(index, queries, seconds):
    """The same loops as in python_overhead.cpp."""
    clock = time.perf_counter
    rows = [queries[i : i + 1] for i in range(len(queries))]
    least = [1e9] * len(rows)
    begin = clock()
    while clock() - begin < seconds:
        for i, row in enumerate(rows):
            start = clock()
            index.search(row, K)
            least[i] = min(least[i], clock() - start)
    everything = 1e9
    begin = clock()
    while clock() - begin < seconds:
        start = clock()
        index.search(queries, K)
        everything = min(everything, clock() - start)
    one = sum(least) / len(least)
    return {"one_us": one * 1e6, "all_us": everything * 1e6}


def cpu():
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", default="build/bin/python_overhead")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()

    base = read("sift_sample_base.u8bin")
    queries = np.resize(read("sift_sample_query.u8bin"), (1000, 128))
    index = faiss_ext.index_factory(128, "GMM256,Flat")
    index.train(base)
    index.add(base)
    index.target_recall = 0.95
    runs = {"cpp": [], "python": []}
    with tempfile.TemporaryDirectory() as folder:
        faiss_ext.write_index(index, f"{folder}/a.index")
        index = faiss_ext.read_index(f"{folder}/a.index")
        with open(f"{folder}/q.fbin", "wb") as file:
            np.array(queries.shape, np.uint32).tofile(file)
            queries.tofile(file)
        command = [
            args.program,
            f"{folder}/a.index",
            f"{folder}/q.fbin",
            str(K),
            str(args.seconds),
        ]
        for _ in range(args.rounds):
            said = subprocess.run(
                command, check=True, capture_output=True, text=True
            )
            runs["cpp"].append(json.loads(said.stdout))
            runs["python"].append(measure(index, queries, args.seconds))
    least = {
        name: {key: min(r[key] for r in rs) for key in rs[0]}
        for name, rs in runs.items()
    }
    out = {
        "command": " ".join(pathlib.Path(a).name for a in sys.argv),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        ),
        "machine": {"cpu": cpu(), "cores": os.cpu_count()},
        "versions": {
            "faiss_ext": faiss_ext.__version__,
            "faiss": faiss_ext.faiss_version,
            "python": sys.version.split()[0],
            "numpy": np.__version__,
        },
        "index": "GMM256,Flat, 50,000 x 128 SIFT descriptors, "
        "target_recall 0.95, one thread",
        "least": least,
        "one_query_overhead_us": least["python"]["one_us"]
        - least["cpp"]["one_us"],
        "all_1000_ratio": least["python"]["all_us"] / least["cpp"]["all_us"],
        "runs": runs,
    }
    print(json.dumps({k: v for k, v in out.items() if k != "runs"}, indent=1))
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
