#!/usr/bin/env python3
"""Training on the CPU beside superkmeans: whole, and one iteration.

    python3 -m venv venv && venv/bin/pip install superkmeans
    OMP_WAIT_POLICY=passive venv/bin/python bench/train_peers.py \
        --train-bench build/bin/train_bench --data sift_base.u8bin --n 200000 \
        --k 1024 --json out.json

Both train in one thread, and processor seconds are compared: they hold on a
machine that others use too. The two take turns. "distortion" is the mean squared
distance of every fourth vector to the nearest mean.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time

import numpy as np
import superkmeans


def read_rows(path, n):
    """The rows that train_bench takes: n spread evenly over the file."""
    dtype = {".u8bin": np.uint8, ".fbin": np.float32}[os.path.splitext(path)[1]]
    total, d = np.fromfile(path, np.uint32, 2).astype(int)
    rows = np.memmap(path, dtype, "r", offset=8, shape=(total, d))
    return np.ascontiguousarray(rows[np.arange(n) * total // n], np.float32)


def distortion(x, means):
    norms = (means ** 2).sum(1)
    total, x = 0.0, x[::4]
    for block in np.array_split(x, len(x) // 2000 + 1):
        nearest = (2 * block @ means.T - norms).max(1)
        total += ((block.astype(np.float64) ** 2).sum(1) - nearest).sum()
    return total / len(x)


def peer(x, k, **options):
    """Processor seconds of a training, and its means."""
    model = superkmeans.SuperKMeans(k, x.shape[1], n_threads=1, **options)
    start = time.process_time()
    means = model.train(x)
    return time.process_time() - start, means


def peer_iteration(x, k):
    """Seconds of an iteration with all vectors and all means."""
    flat = dict(hierarchical=False, sampling_fraction=1.0, early_termination=False,
                max_points_per_cluster=len(x))
    return (peer(x, k, iters=8, **flat)[0] - peer(x, k, iters=2, **flat)[0]) / 6


def ours(args):
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        subprocess.run(
            [args.train_bench, "--data", args.data, "--n", str(args.n), "--k",
             str(args.k), "--json", out.name],
            check=True, stdout=subprocess.DEVNULL,
            env=dict(os.environ, OMP_NUM_THREADS="1"))
        return json.load(open(out.name))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--train-bench", required=True)
    parser.add_argument("--data", required=True, help=".u8bin or .fbin")
    parser.add_argument("--n", type=int, default=200_000)
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()

    x = read_rows(args.data, args.n)
    rounds = []
    for _ in range(args.rounds):
        seconds, means = peer(x, args.k)
        own = ours(args)
        rounds.append({
            "superkmeans": seconds,
            "superkmeans_iteration": peer_iteration(x, args.k),
            "superkmeans_distortion": float(distortion(x, means)),
            "index": own["index"], "iteration": own["iteration"],
            "index_distortion": own["distortion"]})
    best = {name: min(r[name] for r in rounds) for name in rounds[0]}
    out = {"n": args.n, "d": x.shape[1], "k": args.k, "threads": 1,
           "processor_seconds": best,
           "training_ratio": best["index"] / best["superkmeans"],
           "iteration_ratio": best["iteration"] / best["superkmeans_iteration"],
           "distortion_ratio": best["index_distortion"] / best["superkmeans_distortion"],
           "provenance": own["provenance"]}
    print(json.dumps(out, indent=1))
    if args.json:
        with open(args.json, "w") as file:
            json.dump(out, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
