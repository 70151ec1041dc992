#!/usr/bin/env python3
"""Seconds for one EM iteration: em_bench beside scikit-learn, same vectors.

    python3 -m venv venv && venv/bin/pip install scikit-learn
    venv/bin/python bench/sklearn_peer.py --em-bench build/bin/em_bench \
        --data sift_base.u8bin --n 50000 --k 1024 --json out.json

With --threads 1 seconds are the processor's, not the clock's: what others do on
the machine does not count.

Without --data the vectors are made up: 64 groups, normal about centres that are
normal themselves.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings

import numpy as np
import sklearn
from sklearn.mixture import GaussianMixture
from threadpoolctl import threadpool_limits

PEERS = {"isotropic": "spherical", "diagonal": "diag", "full": "full",
         "tied": "tied"}


def read_rows(path, n):
    """The rows that em_bench takes: n spread evenly over the file."""
    dtype = {".u8bin": np.uint8, ".fbin": np.float32}[os.path.splitext(path)[1]]
    total, d = np.fromfile(path, np.uint32, 2).astype(int)
    rows = np.memmap(path, dtype, "r", offset=8, shape=(total, d))
    return rows[np.arange(n) * total // n].astype(np.float64)


def write_made_up(path, n, d):
    random = np.random.default_rng(1)
    centers = random.normal(size=(64, d))
    x = random.normal(size=(n, d)) + centers[np.arange(n) % 64]
    with open(path, "wb") as file:
        np.array([n, d], np.uint32).tofile(file)
        x.astype(np.float32).tofile(file)


def sklearn_seconds(x, k, covariance, iterations, clock):
    """Differences between times of fits that differ by one iteration's work."""
    def fit_seconds(max_iter):
        model = GaussianMixture(
            k, covariance_type=covariance, max_iter=max_iter, tol=0,
            init_params="random_from_data", random_state=1)
        start = clock()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it did not converge
            model.fit(x)
        return clock() - start

    return (fit_seconds(1 + iterations) - fit_seconds(1)) / iterations


def em_seconds(args, covariance):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "em.json")
        subprocess.run(
            [args.em_bench, "--data", args.data, "--n", str(args.n), "--k",
             str(args.k), "--covariance", covariance, "--rounds", "1",
             "--threads", str(args.threads), "--json", out],
            check=True, stdout=subprocess.DEVNULL)
        with open(out) as file:
            return json.load(file)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--em-bench", default="build/bin/em_bench")
    parser.add_argument("--data", help=".u8bin or .fbin; default: made up")
    parser.add_argument("--d", type=int, default=64, help="of made-up vectors")
    parser.add_argument("--covariance", action="append", choices=PEERS,
                        help="repeat for several; default: all")
    parser.add_argument("--threads", type=int, default=os.cpu_count(),
                        help="of both")
    parser.add_argument("--n", type=int, default=50000)
    parser.add_argument("--k", type=int, default=1024)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    args = parser.parse_args()

    busy = os.getloadavg()[0]  # how busy others keep the machine
    folder = tempfile.TemporaryDirectory()
    source = "made up, d = %d" % args.d
    if args.data:
        source = os.path.basename(args.data)
    else:
        args.data = os.path.join(folder.name, "made_up.fbin")
        write_made_up(args.data, args.n, args.d)
    x = read_rows(args.data, args.n)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    results = {}
    for covariance in args.covariance or PEERS:
        peer = PEERS[covariance]
        ours, theirs = [], []
        for _ in range(args.rounds):
            run = em_seconds(args, covariance)
            ours += ([run["em_processor_seconds"]] if args.threads == 1
                     else run["em_seconds"]["iterations"])
            with threadpool_limits(args.threads):
                theirs.append(
                    sklearn_seconds(x, args.k, peer, args.iterations, clock))
        results[covariance] = {
            "em_seconds": statistics.median(ours),
            "sklearn_covariance": peer,
            "sklearn_seconds": statistics.median(theirs),
            "sklearn_over_em": statistics.median(theirs)
            / statistics.median(ours),
            "least_em_seconds": min(ours),
            "least_sklearn_seconds": min(theirs),
            "sklearn_over_em_of_the_least": min(theirs) / min(ours),
        }
        print(covariance, json.dumps(results[covariance]), flush=True)
    if args.json:
        out = {
            "command": "sklearn_peer.py " + " ".join(
                os.path.basename(a) for a in sys.argv[1:]),
            "data": source,
            "threads": args.threads,
            "date": run["date"],
            "machine": run["machine"],
            "versions": dict(run["versions"], sklearn=sklearn.__version__,
                             numpy=np.__version__),
            "load_average_before": busy,
            "n": args.n, "d": x.shape[1], "k": args.k, "results": results,
        }
        with open(args.json, "w") as file:
            json.dump(out, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
