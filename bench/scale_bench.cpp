#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>

#include <fmt/core.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>

#include <faiss/IndexIVF.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include "VectorSource.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/ListShard.h"
#include "faiss_ext/PairCells.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/ivflib.h"
#include "faiss_ext/ondisk.h"
#include "faiss_ext/sources.h"
#include "inputs.h"
#include "memory_watch.h"
#include "vector_files.h"

/** What an index of more vectors than memory holds costs.
 *
 *     scale_bench generate: a file's vectors over and over, with noise
 *     scale_bench build:    train, add and search from a file, its anonymous
 *                           memory and its seconds; --parts: lists on disk
 *     scale_bench query:    cold and warm queries of an index with its lists on
 *                           disk
 *     scale_bench shards:   queries of one index in several ListShards, here in
 *                           one process: messages, and processor time beside
 *                           the index alone
 *     scale_bench partners: processor seconds of finding lists' partners
 */
namespace {

using bench::Timer;
using bench::Watch;

/// @param width  of the noise, uniform
/// @param d      the first dimensions; 0: all
void generate(
        const std::string& from,
        size_t n,
        size_t d,
        float width,
        const std::string& path) {
    const bench::Vectors base = bench::read_vectors(from, "train");
    d = d > 0 ? std::min(d, base.d) : base.d;
    std::ofstream out(path, std::ios::binary);
    const uint32_t shape[] = {uint32_t(n), uint32_t(d)};
    out.write(reinterpret_cast<const char*>(shape), sizeof(shape));
    const bool bytes = path.ends_with(".u8bin");
    uint64_t random = 1234;
    std::vector<float> row(d);
    std::vector<uint8_t> row_bytes(d);
    for (size_t i = 0; i < n; i++) {
        const float* x = base.row(i % base.n);
        for (size_t j = 0; j < d; j++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            const float noise = float(random >> 40) * 0x1p-24f - 0.5f;
            row[j] = std::clamp(
                    x[j] + (i < base.n ? 0 : width * noise), 0.f, 255.f);
            row_bytes[j] = uint8_t(row[j]);
        }
        if (bytes) {
            out.write(reinterpret_cast<const char*>(row_bytes.data()), d);
        } else {
            out.write(
                    reinterpret_cast<const char*>(row.data()),
                    d * sizeof(float));
        }
    }
}

faiss::IndexIVF& ivf_of(faiss::Index& index) {
    auto* gmm = faiss_ext::extract_gmm(&index);
    return gmm ? dynamic_cast<faiss::IndexIVF&>(*gmm)
               : dynamic_cast<faiss::IndexIVF&>(index);
}

/// Of n lists, which have a file's first vectors as means; the least of three.
void partners(const std::string& from, size_t n, size_t d) {
    const auto source = gmm::file_source(from);
    std::vector<std::byte> scratch;
    std::vector<float> x(n * source->d), means(n * d);
    source->rows(0, n, scratch).to_float(x.data());
    for (size_t i = 0; i < n; i++) {
        std::copy_n(&x[i * source->d], d, &means[i * d]);
    }
    double least = HUGE_VAL;
    for (int turn = 0; turn < 3; turn++) {
        const std::clock_t start = std::clock();
        faiss_ext::PairCells().init(n, d, means.data(), 32);
        const double spent = double(std::clock() - start) / CLOCKS_PER_SEC;
        least = std::min(least, spent);
    }
    fmt::print("{:.4f}\n", least);
}

struct Part : gmm::VectorSource {
    const gmm::VectorSource& whole;
    const size_t first;

    Part(const gmm::VectorSource& whole, size_t first, size_t count)
            : whole(whole), first(first) {
        n = count;
        d = whole.d;
        type = whole.type;
    }
    gmm::Rows rows(size_t begin, size_t count, std::vector<std::byte>& scratch)
            const override {
        return whole.rows(first + begin, count, scratch);
    }
};

void build(
        const std::string& factory,
        const std::string& path,
        const std::string& query,
        size_t parts,
        const std::string& out) {
    Watch watch;
    const auto source = gmm::file_source(path);
    std::unique_ptr<faiss::Index> index(
            faiss_ext::index_factory(int(source->d), factory.c_str()));
    fmt::print(
            "{}: {} x {}, {:.0f} MB as floats\n",
            factory,
            source->n,
            source->d,
            double(source->n * source->d) * 4e-6);
    auto report = [&](const char* step, const Timer& timer) {
        fmt::print(
                "{:8} {:8.1f} s, peak RssAnon {:6.0f} MB\n",
                step,
                timer.seconds(),
                watch.take());
        std::fflush(stdout);
        malloc_trim(0); // steps apart: what was freed goes back
    };
    Timer timer;
    faiss_ext::train(index.get(), *source);
    report("train", timer);
    timer = {};
    if (parts == 0) {
        faiss_ext::add(index.get(), *source);
    } else {
        std::vector<std::string> paths;
        for (size_t p = 0; p < parts; p++) {
            const size_t begin = p * source->n / parts;
            const Part some(
                    *source, begin, (p + 1) * source->n / parts - begin);
            auto part = faiss_ext::clone_index(index.get());
            if (auto* gmm = faiss_ext::extract_gmm(part.get())) {
                gmm->cells_per_list = 1; // the whole has them
                gmm->calibrate_on_add = false;
            }
            faiss_ext::add(part.get(), some);
            paths.push_back(out + ".part" + std::to_string(p));
            faiss_ext::write_index(part.get(), paths.back().c_str());
        }
        report("parts", timer);
        watch.take();
        timer = {};
        faiss_ext::merge_ondisk(index.get(), paths, out + ".ivfdata", true);
        for (const std::string& p : paths) {
            std::filesystem::remove(p);
        }
    }
    report(parts ? "merge" : "add", timer);
    const bench::Vectors xq = bench::read_vectors(query, "test");
    auto& ivf = ivf_of(*index);
    ivf.nprobe = 16;
    std::vector<float> distances(xq.n * 10);
    std::vector<faiss_ext::idx_t> ids(xq.n * 10);
    timer = {};
    index->search(xq.n, xq.x.data(), 10, distances.data(), ids.data());
    report("search", timer);
    faiss_ext::write_index(index.get(), (out + ".index").c_str());
    report("write", timer);
}

/// Has the system forget what it read of the file.
void drop(const std::string& path) {
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (fd >= 0) {
        posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
        close(fd);
    }
}

/// One setting, cold (each batch after the file's pages were dropped) and warm.
void query(
        const std::string& path,
        const std::vector<std::string>& settings,
        const bench::Inputs& in,
        size_t batch,
        size_t cold) {
    for (const std::string& setting : settings) {
        std::unique_ptr<faiss::Index> index;
        std::string data;
        auto open_index = [&] {
            index.reset(faiss_ext::read_index(path.c_str()));
            auto& ivf = ivf_of(*index);
            if (setting.rfind("target_recall=", 0) == 0) {
                faiss_ext::extract_gmm(index.get())->target_recall =
                        std::stof(setting.substr(14));
            } else {
                ivf.nprobe = std::stoul(setting);
            }
            data = dynamic_cast<faiss::OnDiskInvertedLists&>(*ivf.invlists)
                           .filename;
        };
        open_index();
        const size_t n = in.xq.n, k = in.k;
        std::vector<float> distances(n * k);
        std::vector<faiss_ext::idx_t> ids(n * k);
        auto run = [&](size_t begin, size_t end) {
            for (size_t i = begin; i < end; i += batch) {
                index->search(
                        std::min(batch, end - i),
                        in.xq.row(i),
                        k,
                        &distances[i * k],
                        &ids[i * k]);
            }
        };
        double cold_seconds = 0, warm_seconds = 1e30;
        cold = std::min(cold, n);
        // Mapped pages stay: the index is opened anew.
        index.reset();
        drop(data);
        open_index();
        const Timer timer;
        run(0, cold);
        cold_seconds = timer.seconds();
        run(0, n);
        for (int round = 0; round < 5; round++) {
            const Timer again;
            run(0, n);
            warm_seconds = std::min(warm_seconds, again.seconds());
        }
        double recall = 0;
        for (size_t i = 0; i < n; i++) {
            recall += in.truth.recall(i, &ids[i * k]);
        }
        fmt::print(
                "{:24} {:20} recall@{} {:.4f}  cold {:7.0f}  warm {:8.0f} "
                "queries/s (batches of {})\n",
                std::filesystem::path(path).filename().string(),
                setting,
                k,
                recall / double(n),
                double(cold) / cold_seconds,
                double(n) / warm_seconds,
                batch);
        std::fflush(stdout);
    }
}

/// `target_recall=R`, `max_codes=N` and numbers, which are nprobe, by commas.
faiss_ext::SearchParametersIVFGMM params_of(const std::string& setting) {
    faiss_ext::SearchParametersIVFGMM out;
    std::istringstream parts(setting);
    for (std::string part; std::getline(parts, part, ',');) {
        const size_t at = part.find('=');
        const std::string value = part.substr(at == part.npos ? 0 : at + 1);
        if (part.starts_with("target_recall=")) {
            out.target_recall = std::stof(value);
        } else if (part.starts_with("max_codes=")) {
            out.max_codes = std::stoul(value);
        } else if (part == "lists") {
            out.probe_order = faiss_ext::ProbeOrder::distance;
        } else {
            out.nprobe = std::stoul(value);
        }
    }
    return out;
}

double processor_seconds() {
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

void shards(
        const std::string& path,
        const std::vector<std::string>& settings,
        const bench::Vectors& xq,
        size_t n_shards) {
    const std::unique_ptr<faiss::Index> whole(
            faiss_ext::read_index(path.c_str()));
    std::vector<faiss_ext::ListShard> all;
    for (size_t s = 0; s < n_shards; s++) {
        all.emplace_back(
                std::unique_ptr<faiss::Index>(
                        faiss_ext::read_index(path.c_str())),
                s,
                n_shards);
    }
    constexpr size_t k = 10;
    const size_t n = xq.n;
    std::vector<float> distances(n * k);
    std::vector<faiss_ext::idx_t> ids(n * k);
    for (const std::string& setting : settings) {
        const auto params = params_of(setting);
        double alone = 1e30, plans = 1e30, answering = 1e30;
        size_t rounds = 0, asked = 0, told = 0, others = 0;
        for (int repeat = 0; repeat < 5; repeat++) {
            double t = processor_seconds();
            ivf_of(*whole).search(
                    n, xq.x.data(), k, distances.data(), ids.data(), &params);
            alone = std::min(alone, processor_seconds() - t);
            double planning = 0, answers_take = 0;
            faiss_ext::ListShard::Answers answers;
            for (asked = told = 0;;) {
                t = processor_seconds();
                const auto step =
                        all[0].step(n, xq.x.data(), k, &params, answers);
                planning += processor_seconds() - t;
                if (step.done) {
                    others = 0;
                    for (size_t i = 0; i < n * k; i++) {
                        others += step.distances[i] != distances[i];
                    }
                    break;
                }
                t = processor_seconds();
                answers.emplace_back();
                for (size_t s = 0; s < n_shards; s++) {
                    answers.back().push_back(
                            all[s].answer(n, xq.x.data(), k, step.requests[s]));
                    asked += step.requests[s].size();
                    told += answers.back().back().size();
                }
                answers_take += processor_seconds() - t;
            }
            rounds = answers.size();
            plans = std::min(plans, planning);
            answering = std::min(answering, answers_take);
        }
        const double us = 1e6 / double(n), each = 1 / double(n);
        fmt::print(
                "{:24} rounds {}, asked {:7.0f}, told {:7.0f} bytes; alone "
                "{:5.1f}, planning {:5.1f}, answering {:5.1f} us; {} others\n",
                setting,
                rounds,
                double(asked) * each,
                double(told) * each,
                alone * us,
                plans * us,
                answering * us,
                others);
        std::fflush(stdout);
    }
}

} // namespace

int main(int argc, char** argv) try {
    CLI::App app("What an index of more vectors than memory costs");
    app.require_subcommand(1);
    std::string from, path, factory, xq, out;
    size_t n = 1000000, parts = 0, batch = 1, cold = 200;
    float noise = 16;
    size_t d = 0;
    std::vector<std::string> settings, indexes;
    auto* make = app.add_subcommand("generate", "write a file of vectors");
    make->add_option("--from", from)->required();
    make->add_option("-n", n, "vectors");
    make->add_option("-d", d, "their first dimensions; 0: all");
    make->add_option("--noise", noise, "uniform, so wide in all");
    make->add_option("--out", path, ".fbin or .u8bin")->required();
    auto* fill = app.add_subcommand("build", "train, add and search");
    fill->add_option("--factory", factory)->required();
    fill->add_option("--data", path)->required();
    fill->add_option("--query", xq)->required();
    fill->add_option("--parts", parts, "lists on disk, built in so many");
    fill->add_option("--out", out, "OUT.index, OUT.ivfdata")->required();
    auto* ask = app.add_subcommand("query", "cold and warm queries");
    bench::Inputs inputs;
    inputs.add_options(*ask);
    ask->add_option("--index", indexes)->required();
    ask->add_option("--setting", settings, "nprobe, or target_recall=R")
            ->required();
    ask->add_option("--batch", batch);
    ask->add_option("--cold", cold, "queries that find nothing in memory");
    size_t n_shards = 4;
    auto* pairs = app.add_subcommand("partners", "finding lists' partners");
    pairs->add_option("--from", from)->required();
    pairs->add_option("-n", n, "lists")->required();
    pairs->add_option("-d", d, "first dimensions")->required();
    auto* spread = app.add_subcommand("shards", "one index in several");
    spread->add_option("--index", path)->required();
    spread->add_option("--query", xq)->required();
    spread->add_option(
                  "--setting",
                  settings,
                  "by commas: nprobe, target_recall=R, max_codes=N, lists")
            ->required();
    spread->add_option("--shards", n_shards);
    CLI11_PARSE(app, argc, argv);
    if (*make) {
        generate(from, n, d, noise, path);
    } else if (*pairs) {
        partners(from, n, d);
    } else if (*fill) {
        build(factory, path, xq, parts, out);
    } else if (*spread) {
        shards(path, settings, bench::read_vectors(xq, "test"), n_shards);
    } else {
        inputs.load();
        for (const std::string& index : indexes) {
            query(index, settings, inputs, batch, cold);
        }
    }
} catch (const std::exception& e) {
    fmt::print(stderr, "{}\n", e.what());
    return 1;
}
