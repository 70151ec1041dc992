#!/usr/bin/env python3
"""Queries a second beside other libraries of PyPI, on one machine, in one run.

    python3 -m venv venv
    venv/bin/pip install numpy hnswlib scann scalable-vs usearch rabitqlib
    venv/bin/python bench/cpu_peers.py --recall-sweep build/bin/recall_sweep \\
        --base DIR/sift_base.u8bin --query DIR/sift_query.u8bin --json out.json

Every library builds its index with all threads and searches with one, each at
the settings below; what counts is the fastest of them at a recall, linear between
two. A library that is not installed is left out, and the table says so. FAISS and
ours are measured by recall_sweep, which runs first.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time

import numpy as np

RECALLS = (0.9, 0.95, 0.99)


def read_vectors(path):
    dtype = {".u8bin": np.uint8, ".fbin": np.float32}[os.path.splitext(path)[1]]
    n, d = np.fromfile(path, np.uint32, 2).astype(int)
    rows = np.memmap(path, dtype, "r", offset=8, shape=(n, d))
    return np.ascontiguousarray(rows, np.float32)


def neighbours(xb, xq, k):
    """Exact: blocks of products, in double where it matters."""
    norms = (xb.astype(np.float64) ** 2).sum(1)
    out = np.empty((len(xq), k), np.int64)
    for i in range(0, len(xq), 100):
        d = norms - 2.0 * (xq[i:i + 100] @ xb.T)
        near = np.argpartition(d, 2 * k, 1)[:, :2 * k]
        exact = ((xb[near].astype(np.float64) - xq[i:i + 100, None]) ** 2).sum(2)
        out[i:i + 100] = np.take_along_axis(near, exact.argsort(1)[:, :k], 1)
    return out


def hnswlib_(xb, threads):
    import hnswlib
    for m in (16, 32):
        index = hnswlib.Index("l2", xb.shape[1])
        index.init_index(len(xb), M=m, ef_construction=200)
        index.set_num_threads(threads)
        index.add_items(xb)
        index.set_num_threads(1)
        def search(q, k, ef):
            index.set_ef(ef)
            return index.knn_query(q, k)[0]
        yield f"hnswlib, M {m}", search, [(ef,) for ef in (10, 16, 24, 32, 48, 64, 96, 128, 192, 256)]


def scann_(xb, threads):
    import scann
    for leaves in (512, 1024, 2048, 4096):
        if leaves * 20 > len(xb):
            continue
        builder = scann.scann_ops_pybind.builder(xb, 10, "squared_l2")
        builder.set_n_training_threads(threads)
        index = builder.tree(
            leaves, leaves // 10, training_sample_size=min(len(xb), 250000)
        ).score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100).build()
        def search(q, k, probed, reorder):
            return index.search_batched(
                q, k, pre_reorder_num_neighbors=reorder, leaves_to_search=probed)[0]
        yield f"ScaNN, {leaves} leaves", search, [
            (leaves * p // 1000, r) for p in (5, 10, 15, 20, 30, 45, 70, 100)
            for r in (30, 60, 120, 250) if leaves * p >= 2000]


def svs_(xb, threads):
    import svs
    parameters = svs.VamanaBuildParameters(
        graph_max_degree=64, window_size=128, alpha=1.2)
    index = svs.Vamana.build(parameters, xb, svs.DistanceType.L2, num_threads=threads)
    index.num_threads = 1
    def search(q, k, window):
        index.search_window_size = window
        return index.search(q, k)[0]
    yield "SVS Vamana, degree 64", search, [(w,) for w in (10, 14, 20, 28, 40, 56, 80, 112, 160, 224)]


def usearch_(xb, threads):
    from usearch.index import Index
    index = Index(ndim=xb.shape[1], metric="l2sq", dtype="f32", connectivity=16,
                  expansion_add=128)
    index.add(np.arange(len(xb)), xb, threads=threads)
    def search(q, k, ef):
        index.expansion_search = ef
        return index.search(q, k, threads=1).keys.reshape(len(q), k)
    yield "usearch, connectivity 16", search, [(ef,) for ef in (16, 32, 64, 128, 256, 400)]


def rabitqlib_(xb, threads):
    import rabitqlib
    n, d = xb.shape
    for clusters in (1024, 4096):
        if clusters * 20 > n:
            continue
        clustering = rabitqlib.RaBitQKMeans(d, clusters, num_threads=threads)
        clustering.train(xb)
        for bits in (5, 32):  # 32: one bit, and raw vectors to rank again
            index = rabitqlib.IvfIndex(
                dim=d, max_elements=n, num_clusters=clusters, nbits=bits, metric="l2")
            index.build(xb, clustering.centroids, clustering.assignments)
            def search(q, k, probed):
                return index.search(q, k=k, nprobe=probed)[0]
            yield f"rabitqlib IVF{clusters}, {bits} bits", search, [
                (p,) for p in (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192) if p < clusters]


PEERS = {"hnswlib": hnswlib_, "scann": scann_, "svs": svs_, "usearch": usearch_,
         "rabitqlib": rabitqlib_}


def measure(search, setting, xq, truth, batch, repeat):
    seconds = []
    for _ in range(repeat):
        found, start = [], time.perf_counter()
        for i in range(0, len(xq), batch):
            found.append(search(xq[i:i + batch], truth.shape[1], *setting))
        seconds.append(time.perf_counter() - start)
    found = np.concatenate([np.asarray(f) for f in found]).astype(np.int64)
    recall = (found[:, :, None] == truth[:, None]).any(2).mean()
    return float(recall), len(xq) / sorted(seconds)[len(seconds) // 2]


def at_recall(points, recall):
    """The most queries a second at a recall: on the frontier, linear between."""
    best = []
    for r, qps in sorted(points, reverse=True):
        if not best or qps > best[-1][1]:
            best.append((r, qps))
    best.reverse()
    for (r0, q0), (r1, q1) in zip(best, best[1:]):
        if r0 <= recall <= r1:
            return q0 + (q1 - q0) * (recall - r0) / (r1 - r0) if r1 > r0 else q1
    return best[0][1] if best and best[0][0] >= recall else None


def ours(args):
    """The curves of recall_sweep, by label."""
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [args.recall_sweep, "--base", args.base, "--query", args.query,
                   "--queries", str(args.queries), "--train", "200000",
                   "--threads", "1", "--batch", f"1,{args.batch}", "--repeat", "3",
                   "--json", out.name, "--factory"]
        n = args.nlist
        command += [f"IVF{n},Flat", f"GMM{n},Flat", "--sweep",
                    f"IVF{n},Flat: nprobe=8,16,24,32,48,64,96,128",
                    f"GMM{n},Flat: target_recall=0.7,0.8,0.85,0.88,0.9,0.92,0.94,"
                    "0.95,0.97,0.98,0.99,0.995"]
        subprocess.run(command, check=True)
        out.seek(0)
        curves = {}
        for row in json.load(out)["results"]:
            for batch, qps in row["qps_by_batch"].items():
                curves.setdefault((row["label"], int(batch)), []).append(
                    (row["recall_at_k"], qps))
        return curves


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recall-sweep", required=True)
    parser.add_argument("--base", required=True)
    parser.add_argument("--query", required=True)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--nlist", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=os.cpu_count(),
                        help="that build the peers' indexes")
    parser.add_argument("--peers", nargs="*", default=sorted(PEERS), choices=sorted(PEERS))
    parser.add_argument("--json")
    args = parser.parse_args()

    curves = ours(args)
    xb, xq = read_vectors(args.base), read_vectors(args.query)[:args.queries]
    truth = neighbours(xb, xq, 10)
    versions, seconds = {}, {}
    for name in args.peers:
        start = time.perf_counter()
        try:
            for label, search, settings in PEERS[name](xb, args.threads):
                seconds[label] = time.perf_counter() - start
                for setting in settings:
                    for batch in (1, args.batch):
                        curves.setdefault((label, batch), []).append(
                            measure(search, setting, xq, truth, batch, 3))
                    print(label, setting, "recall {:.4f} qps {:.0f}".format(
                        *curves[label, args.batch][-1]), file=sys.stderr, flush=True)
                start = time.perf_counter()
        except ImportError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
            continue
        from importlib.metadata import version
        package = {"svs": "scalable-vs"}.get(name, name)
        versions[package] = version(package)

    print(f"{'queries a second at recall':32}" + "".join(
        f"{r:>18}" for r in RECALLS) + "   built")
    for label in sorted({label for label, _ in curves}):
        cells = []
        for recall in RECALLS:
            two = [at_recall(curves[label, b], recall) for b in (1, args.batch)]
            cells.append(" / ".join("-" if q is None else f"{q:.0f}" for q in two))
        built = f"{seconds[label]:.1f} s" if label in seconds else ""
        print(f"{label:32}" + "".join(f"{c:>18}" for c in cells) + f"   {built}")
    if args.json:
        with open(args.json, "w") as out:
            json.dump({
                "command": "cpu_peers.py " + " ".join(
                    os.path.basename(a) for a in sys.argv[1:]),
                "date": datetime.date.today().isoformat(), "machine": processor(),
                "versions": versions, "build_seconds": seconds,
                "curves": [{"label": label, "batch": batch, "points": points}
                           for (label, batch), points in sorted(curves.items())],
            }, out, indent=1)


if __name__ == "__main__":
    main()
