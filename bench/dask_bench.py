#!/usr/bin/env python3
"""An EM iteration on a cluster of processes beside one process's; kills.

    bench/dask_bench.py time FOLDER [--from SIFT.u8bin] [--rows N] [--k K]
    bench/dask_bench.py kills [--kills N]

time: four files of N x 128 floats in FOLDER (written from the descriptors, over
and over with noise, unless they are there); seconds an iteration of 2 workers
with a thread each and of one process with 2 threads, in turns, the least of
several rounds. kills: workers die in fits; results equal to one process's.
"""

import argparse
import os
import signal
import threading
import time
import warnings
from pathlib import Path

import dask.array as da
import numpy as np
from dask import config
from distributed import Client, LocalCluster

from faiss_ext import GaussianMixture, _core
from faiss_ext import dask as fdask

FILES = 4


def write(folder, source, rows):
    paths = []
    n, d = np.fromfile(source, np.int32, 2)
    base = np.memmap(source, np.uint8, "r", 8, (n, d))
    random = np.random.default_rng(1)
    for i in range(FILES):
        paths.append(folder / f"part{i}.fbin")
        if paths[-1].exists():
            continue
        with open(paths[-1], "wb") as file:
            np.array([rows, d], np.int32).tofile(file)
            for begin in range(0, rows, 65536):
                which = (i * rows + np.arange(begin, min(begin + 65536, rows))) % n
                noise = random.random((len(which), d), np.float32) * 16 - 8
                (base[which] + noise).tofile(file)
    return paths


def processor_seconds(pids):
    """Of this process and others."""
    total = time.process_time()
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def iteration_seconds(fit, pids):
    """Of two trainings the second of which has three iterations more: by the
    clock, and of processors."""
    taken = []
    for iterations in (1, 4):
        start = time.perf_counter(), processor_seconds(pids)
        fit(iterations)
        taken.append((time.perf_counter() - start[0], processor_seconds(pids) - start[1]))
    return [(b - a) / 3 for a, b in zip(*taken, strict=True)]


def compare(args):
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = write(folder, args.source, args.rows)
    x = np.concatenate([np.fromfile(p, np.float32, offset=8).reshape(args.rows, -1) for p in paths])
    options = dict(covariance_type="diag", tol=0, random_state=0,
                   means_init=np.array(x[:: len(x) // args.k][: args.k]))
    _core.omp_set_num_threads(2)
    best = {}
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None,
                      env={"OMP_NUM_THREADS": "1"}) as cluster, Client(cluster):
        pids = [worker.pid for worker in cluster.workers.values()]
        for round_ in range(args.rounds):
            load = os.getloadavg()[0]
            for name, fit in (
                ("2 workers", lambda i: fdask.fit(paths, args.k, max_iter=i, **options)),
                ("1 process", lambda i: GaussianMixture(args.k, max_iter=i, **options).fit(x)),
            ):
                seconds = iteration_seconds(fit, pids)
                best[name] = np.minimum(best.get(name, seconds), seconds)
                print(f"round {round_}, load {load:.1f}: {name} {seconds[0]:.2f} s an iteration, "
                      f"{seconds[1]:.2f} s of processors", flush=True)
    print(f"{FILES} x {args.rows} x {x.shape[1]}, k = {args.k}, least of {args.rounds} rounds:")
    for i, what in enumerate(("by the clock", "of processors, client and scheduler with the workers")):
        a, b = best["2 workers"][i], best["1 process"][i]
        print(f"  {what}: {a:.2f} s over {b:.2f} s = {a / b:.3f}")


def kill_in(fit, cluster, number, after):
    """What is fitted while a worker dies, or None if it was fitted before."""
    done, killed = threading.Event(), threading.Event()

    def kill():
        if not done.wait(after):
            os.kill(list(cluster.workers.values())[number].pid, signal.SIGKILL)
            killed.set()

    thread = threading.Thread(target=kill)
    thread.start()
    fitted = fit()
    done.set()
    thread.join()
    return fitted if killed.is_set() else None


def kills(args):
    x = np.random.default_rng(0).normal(size=(6000, 64)).astype(np.float32)
    options = dict(covariance_type="diag", max_iter=4, tol=0, random_state=0, block_rows=700)

    def fit():
        return fdask.fit(da.from_array(x, chunks=(700, 64)), 6, **options)

    with config.set(scheduler="synchronous"):
        alone = fit()
    random = np.random.default_rng(1)
    killed = equal = 0
    while killed < args.kills:
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster, Client(cluster) as client:
            while killed < args.kills:
                try:
                    client.wait_for_workers(2, timeout=20)
                except TimeoutError:
                    break  # a nanny that did not start another: the rest with a new cluster
                hit = kill_in(fit, cluster, killed % 2, random.uniform(0.05, 0.6))
                if hit:
                    killed += 1
                    equal += all(
                        np.array_equal(getattr(hit, name), getattr(alone, name))
                        for name in ("means_", "covariances_", "weights_")
                    )
    print(f"{killed} kills in fits, {equal} results equal to one process's, to the bit")
    return equal == killed


def main():
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    timed = commands.add_parser("time")
    timed.add_argument("folder")
    timed.add_argument("--from", dest="source", required=True)
    timed.add_argument("--rows", type=int, default=1 << 20)
    timed.add_argument("--k", type=int, default=256)
    timed.add_argument("--rounds", type=int, default=3)
    kill = commands.add_parser("kills")
    kill.add_argument("--kills", type=int, default=20)
    args = parser.parse_args()
    if args.command == "time":
        compare(args)
    elif not kills(args):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
