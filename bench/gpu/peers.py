#!/usr/bin/env python3
"""Times gpu_bench's kernel, its peers and chunked PyTorch on the same vectors and the same model.

Of diagonal and full covariances Flash-GMM's kernel for them alone stands beside ours.

    PYTHONPATH=.../Flash-GMM:.../flash-kmeans bench/gpu/peers.py --bench build/bin/gpu_bench --data sift.u8bin

The peers are https://github.com/IBM/Flash-GMM and https://github.com/svg-project/flash-kmeans; those whose checkouts
are not on PYTHONPATH are left out. Medians of --runs passes after warm-up, from device events.
"""
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import torch
except ImportError as error:
    sys.exit(f"{error}; needed are numpy, PyTorch with CUDA and, for the peers, Triton")


def load(path, n, d):
    """n vectors: the file's over and over, with a little noise from the second time on; or Gaussian noise."""
    torch.manual_seed(1)
    if path == "noise":
        return torch.randn(n, d, device="cuda")
    count, dim = np.fromfile(path, np.int32, 2)
    kind = np.uint8 if path.endswith("u8bin") else np.float32
    base = torch.from_numpy(np.fromfile(path, kind, offset=8).reshape(count, dim)[:, :d]).cuda().float()
    x = base.repeat((n + count - 1) // count, 1)[:n].contiguous()
    if n > count:
        x[count:] += 0.02 * base.std() * torch.randn_like(x[count:])
    return x


def median_ms(work, runs):
    times = []
    for i in range(runs + 2):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        if i >= 2:
            times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def torch_step(x, means, variances, log_weights, kind, chunk=65536):
    """The E-step and its sums as PyTorch does them, a chunk of rows at a time."""
    k, d = means.shape
    y, m = x.to(kind), means.to(kind)
    constant = log_weights - 0.5 * d * torch.log(2 * torch.pi * variances) - 0.5 * (means * means).sum(1) / variances
    square = (x * x).sum(1, keepdim=True)

    def step():
        n_k, sums = torch.zeros(k, device="cuda"), torch.zeros(k, d, device="cuda")
        for i in range(0, len(x), chunk):
            z = constant + ((y[i:i + chunk] @ m.T).float() - 0.5 * square[i:i + chunk]) / variances
            r = torch.softmax(z, 1)
            n_k += r.sum(0)
            sums += (r.to(kind).T @ y[i:i + chunk]).float()
        return n_k, sums
    return step


def log_prob(x, model):
    """log pi_k + log N(x | k), in double; x of few rows."""
    m = model["means"].double()
    k, d = m.shape
    if "factors" in model:
        u = model["factors"].double()
        half_log_det = u.diagonal(dim1=1, dim2=2).log().sum(1)
        square = torch.stack([(((x - m[j]) @ u[j]) ** 2).sum(1) for j in range(k)], 1)
    elif model["variances"].dim() == 2:
        v = model["variances"].double()
        half_log_det = -0.5 * v.log().sum(1)
        square = torch.stack([((x - m[j]) ** 2 / v[j]).sum(1) for j in range(k)], 1)
    else:
        v = model["variances"].double()
        half_log_det = -0.5 * d * v.log()
        square = torch.cdist(x, m, compute_mode="donot_use_mm_for_euclid_dist") ** 2 / v
    return model["log_weights"].double() + half_log_det - 0.5 * d * math.log(2 * math.pi) - 0.5 * square


def reference(x, model):
    """log Z and N_k in double."""
    log_z, n_k = [], 0
    for i in range(0, len(x), 4096):
        z = log_prob(x[i:i + 4096].double(), model)
        log_z.append(torch.logsumexp(z, 1))
        n_k = n_k + torch.exp(z - log_z[-1][:, None]).sum(0)
    return torch.cat(log_z), n_k


def flash_estep(x, model):
    """Flash-GMM's E-step for the model's kind; (log Z, N_k, ...)."""
    means, log_weights = model["means"], model["log_weights"]
    if "factors" in model:
        from flash_gmm_full_h100 import flash_gmm_estep_full
        return flash_gmm_estep_full(x, means, model["factors"], log_weights)
    if model["variances"].dim() == 2:
        from flash_gmm_diag_h100 import flash_gmm_estep_diag
        return flash_gmm_estep_diag(x, means, model["variances"].log(), log_weights)
    from flash_gmm_h100 import flash_gmm_estep
    return flash_gmm_estep(x, means, model["variances"].log(), log_weights)


def split_model(raw, covariance, k, d):
    """What gpu_bench --model-out wrote."""
    sizes = {"means": k * d, "variances": {"isotropic": k, "diagonal": k * d, "full": 0}[covariance], "log_weights": k}
    if covariance == "full":
        sizes["factors"] = k * d * d
    model = dict(zip(sizes, (part.contiguous() for part in raw.split(list(sizes.values())))))
    model["means"] = model["means"].view(k, d)
    if covariance == "diagonal":
        model["variances"] = model["variances"].view(k, d)
    if covariance == "full":
        model["factors"] = model["factors"].view(k, d, d)
    return model


def compile_part(part, parts, d, k):
    """Compiles every parts-th of the configurations that Flash-GMM tunes over, into Triton's cache.

    It has 60 of them, and one after the other they take longer than all else together.
    """
    import flash_gmm_h100 as flash
    x, means = torch.randn(16384, d, device="cuda"), torch.randn(k, d, device="cuda")
    zeros = torch.zeros(k, device="cuda")
    kernels = flash._gmm_lse_kernel, flash._gmm_atomic_accum
    for config in list(kernels[0].configs)[part::parts]:
        for kernel in kernels:
            kernel.configs = [config]
        try:
            flash.flash_gmm_estep(x, means, zeros, zeros)
            torch.cuda.synchronize()
        except Exception as error:  # too large for this card: the tuning skips it as well
            print("configuration left out:", config, repr(error)[:100])


def compile_all(args):
    parts = os.cpu_count() or 1
    command = [sys.executable, __file__, "--bench", "-", "-d", str(args.d), "-k", str(args.k), "--compile-part"]
    running = [subprocess.Popen([*command, f"{i}/{parts}"], stdout=subprocess.DEVNULL) for i in range(parts)]
    for process in running:
        process.wait()


def kmeans_and_torch(x, model, args, results):
    """What has no other covariances: flash-kmeans and PyTorch."""
    try:
        from flash_kmeans import batch_kmeans_Euclid
        half = x.half()[None]
        start = model["means"].half()[None]
        one, five = (median_ms(lambda i=i: batch_kmeans_Euclid(half, args.k, max_iters=i, tol=-1.0,
                                                               init_centroids=start), args.runs) for i in (1, 5))
        results["flash-kmeans, one iteration, fp16"] = {"ms": (five - one) / 4}
        del half
    except Exception as error:
        print("flash-kmeans left out:", repr(error)[:300])
    for name, kind in (("bf16", torch.bfloat16), ("tf32", torch.float32)):
        torch.backends.cuda.matmul.allow_tf32 = True
        step = torch_step(x, model["means"], model["variances"], model["log_weights"], kind)
        results["PyTorch, chunked, " + name] = {"ms": median_ms(step, args.runs)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bench", required=True, nargs="+", help="gpu_bench and what it is started with")
    parser.add_argument("--data", default="noise")
    parser.add_argument("-n", type=int, default=1000000)
    parser.add_argument("-d", type=int, default=128)
    parser.add_argument("-k", type=int, default=1024)
    parser.add_argument("--covariance", choices=["isotropic", "diagonal", "full"], default="isotropic")
    parser.add_argument("--train", type=int, default=100000)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--errors", type=int, default=100000, help="vectors that are compared with double")
    parser.add_argument("--json")
    parser.add_argument("--compile-part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile_part:
        compile_part(*map(int, args.compile_part.split("/")), args.d, args.k)
        return

    results = {}
    isotropic = args.covariance == "isotropic"
    with tempfile.TemporaryDirectory() as folder:
        model = os.path.join(folder, "model")
        for precision in ("fast", "exact"):
            command = [*args.bench, "--data", args.data, "-n", args.n, "-d", args.d, "-k", args.k, "--covariance",
                       args.covariance, "--train", args.train, "--runs", args.runs, "--precision", precision,
                       "--errors", min(args.errors, args.n), "--model-out", model]
            line = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
            ours = json.loads(line.strip().splitlines()[-1])
            results["this, " + precision] = {"ms": ours["device_ms"], **ours["errors"]}
        model = split_model(torch.from_numpy(np.fromfile(model, np.float32)).cuda(), args.covariance, args.k, args.d)
    x = load(args.data, args.n, args.d)

    try:
        import flash_gmm_h100  # noqa: F401
        if isotropic:
            compile_all(args)
        entry = {"ms": median_ms(lambda: flash_estep(x, model), args.runs)}
        sample = x[:args.errors].contiguous()
        log_z, n_k = reference(sample, model)
        got_z, got_n = flash_estep(sample, model)[:2]
        counted = n_k > 10
        entry["log_z_worst"] = (got_z.double() - log_z).abs().max().item()
        entry["n_k_worst"] = (got_n.double() / n_k - 1).abs()[counted].max().item()
        results["Flash-GMM, H100"] = entry
    except Exception as error:  # absent, or its kernel did not compile here
        print("Flash-GMM left out:", repr(error)[:300])
    if isotropic:
        kmeans_and_torch(x, model, args, results)

    ours = results["this, fast"]["ms"]
    print(f"{args.data} {args.n} x {args.d}, K = {args.k}, {torch.cuda.get_device_name()}")
    for name, entry in results.items():
        error = "".join(f"  {key} {entry[key]:.2g}" for key in ("log_z_worst", "n_k_worst") if key in entry)
        print(f"{name:36} {entry['ms']:9.3f} ms {entry['ms'] / ours:7.2f} x{error}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"args": vars(args), "device": torch.cuda.get_device_name(), "results": results}, file, indent=1)


if __name__ == "__main__":
    main()
