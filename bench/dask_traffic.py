#!/usr/bin/env python3
"""Bytes that a cluster's network carries, beside docs/scale.md's formulas.

    bench/dask_traffic.py FOLDER --from SIFT.u8bin [--rows N]

Two workers are on a host of their own (a network namespace, which takes root),
client and scheduler on another. Counted is what goes over the line between the
two, and between the workers; with the headers of TCP and Dask's own messages.
"""

import argparse
import os
import subprocess
import sys
import warnings
from pathlib import Path

import dask.array as da
import numpy as np
from distributed import Client, LocalCluster

from faiss_ext import SearchParameters, _core
from faiss_ext import dask as fdask

NEAR, FAR = f"dt{os.getpid()}a", f"dt{os.getpid()}b"
WORKERS, NLIST, K = 2, 256, 10


def counted(far):
    """Bytes so far: over the line, and between the workers."""
    def device(text, name):
        fields = next(line for line in text.splitlines() if line.strip().startswith(name + ":")).split(":")[1].split()
        return int(fields[0]), int(fields[8])

    there = subprocess.run(["ip", "netns", "exec", far, "cat", "/proc/net/dev"], check=True, capture_output=True,
                           text=True).stdout
    return sum(device(there, "vb")) + device(there, "lo")[1]


def report(what, far, formula, run):
    before = counted(far)
    out = run()
    measured = counted(far) - before
    print(f"{what}: {measured / 1e6:.2f} MB, by the formula {formula / 1e6:.2f} MB, ratio {measured / formula:.2f}",
          flush=True)
    return out


def messages(path, x, params):
    """Of one search: rounds, and bytes of requests and of answers in each."""
    shards = [_core.ListShard(path, s, WORKERS) for s in range(WORKERS)]
    x, answers, asked, told = shards[0].transform(x), [], [], []
    parameters = SearchParameters(**params)
    while True:
        _, labels, requests = shards[0].step(x, K, parameters, answers)
        if requests is None:
            return asked, told
        answers.append([s.answer(x, K, parameters, r) for s, r in zip(shards, requests, strict=True)])
        asked.append(sum(map(len, requests)))
        told.append(sum(map(len, answers[-1])))


def measure(folder, source, rows, far):
    n, d = np.fromfile(source, np.int32, 2)
    base = np.memmap(source, np.uint8, "r", 8, (n, d))[:rows].astype(np.float32)
    queries = np.ascontiguousarray(base[:: rows // 4000])[:4000] + np.float32(0.5)
    block = rows // 8
    files = []
    for i in range(8):
        files.append(folder / f"part{i}.fbin")
        with open(files[-1], "wb") as file:
            np.array([block, d], np.int32).tofile(file)
            base[i * block : (i + 1) * block].tofile(file)
    for kind, factor, parts in (("spherical", 1, 8), ("spherical", 1, 32), ("diag", 2, 8)):
        def fit(iterations, kind=kind, parts=parts):
            fdask.fit(files, NLIST, covariance_type=kind, max_iter=iterations, tol=0, random_state=0,
                      block_rows=rows // parts, means_init=base[:: rows // NLIST][:NLIST])

        carried = []
        for iterations in (1, 9):
            before = counted(far)
            fit(iterations)
            carried.append(counted(far) - before)
        measured = (carried[1] - carried[0]) / 8
        formula = factor * NLIST * d * (16 * (0.75 * (parts - 1) * (1 - 1 / WORKERS) + 1) + 4 * WORKERS)
        print(f"fit, an iteration, {kind}, {parts} blocks: {measured / 1e6:.2f} MB, by the formula {formula / 1e6:.2f} MB, "
              f"ratio {measured / formula:.2f}", flush=True)
    x = da.from_array(base, chunks=(block, d))
    options = dict(block_rows=block, shard_rows=rows // WORKERS, sample_rows=16384)
    report("build from the client's memory", far, 2 * WORKERS * 4 * rows * d, lambda: fdask.build(
        x, f"GMM{NLIST},Flat", folder / "other", **options))
    manifest = fdask.build(files, f"GMM{NLIST},Flat", folder / "shards", **options)
    fdask.merge(manifest, on_disk=True)
    nq = len(queries)
    for params in (dict(target_recall=0.9), dict(nprobe=4), dict(nprobe=16)):
        fdask.search(manifest, queries[:100], K, params=params)  # which loads the shards
        asked, told = messages(folder / "shards" / "merged.index", queries, params)
        rounds = len(asked)
        formula = 4 * nq * d * (1 + rounds * (WORKERS + 1) + 1) + 2 * sum(asked) + 12 * nq * K
        formula += sum((1 + rounds - i) * bytes_ for i, bytes_ in enumerate(told))
        report(f"search, {params}, {rounds} rounds, asked {sum(asked) / nq:.0f}, told {sum(told) / nq:.0f} a query", far,
               formula, lambda p=params: fdask.search(manifest, queries, K, params=p))
    fdask.search(manifest, queries[:100], K, params={}, shards=1)
    report("search, shards=1", far, nq * (4 * d + 12 * K),
           lambda: fdask.search(manifest, queries, K, params=dict(nprobe=4), shards=1))
    fdask.search(manifest, queries[:100], K, nprobe=4)
    report("search, nprobe", far, WORKERS * nq * (4 * d + 12 * K), lambda: fdask.search(manifest, queries, K, nprobe=4))


def inside(args):
    folder = Path(args.folder)
    folder.mkdir(parents=True, exist_ok=True)
    workers = []
    with LocalCluster(n_workers=0, host="10.78.0.1", dashboard_address=None) as cluster, Client(cluster) as client:
        try:
            for _ in range(WORKERS):
                workers.append(subprocess.Popen([
                    "ip", "netns", "exec", args.inside, sys.executable, "-m", "distributed.cli.dask_worker",
                    cluster.scheduler_address, "--nthreads", "1", "--no-dashboard", "--host", "10.78.0.2"],
                    stderr=subprocess.DEVNULL))
            client.wait_for_workers(WORKERS, timeout=60)
            measure(folder, args.source, args.rows, args.inside)
        finally:
            for worker in workers:
                worker.terminate()
                worker.wait()


def main():
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--from", dest="source", required=True)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        inside(args)
        return

    def ip(*words):
        subprocess.run(["ip", *words], check=True)

    try:
        ip("netns", "add", NEAR)
        ip("netns", "add", FAR)
        ip("link", "add", "va", "netns", NEAR, "type", "veth", "peer", "name", "vb", "netns", FAR)
        for host, end, address in ((NEAR, "va", "10.78.0.1/24"), (FAR, "vb", "10.78.0.2/24")):
            ip("-n", host, "addr", "add", address, "dev", end)
            ip("-n", host, "link", "set", end, "up")
            ip("-n", host, "link", "set", "lo", "up")
        subprocess.run(["ip", "netns", "exec", NEAR, sys.executable, *sys.argv, "--inside", FAR], check=True)
    finally:
        for host in (NEAR, FAR):
            subprocess.run(["ip", "netns", "del", host], check=False)


if __name__ == "__main__":
    main()
