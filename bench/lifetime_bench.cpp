// An index that lives: single additions, removals and updates beside FAISS's
// IVF, and what a target recall is worth while maintenance is due. Processor
// time of one thread, in the rows of a Markdown table.
//   lifetime_bench [adds] [single] [turnover]     all, if none is named

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <omp.h>

#include <faiss/IndexIVF.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/utils/distances.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/ivflib.h"

namespace {

using faiss_ext::idx_t;

struct Rows {
    size_t n = 0, d = 0;
    std::vector<float> x;
    const float* row(size_t i) const {
        return &x[i % n * d];
    }
};

/// About 500 centres.
Rows clusters(size_t n, size_t d) {
    std::mt19937 rng(1);
    std::normal_distribution<float> normal;
    std::vector<float> centres(500 * d);
    for (float& c : centres) {
        c = normal(rng);
    }
    Rows out{n, d, std::vector<float>(n * d)};
    for (size_t i = 0; i < n; i++) {
        const float* c = &centres[rng() % 500 * d];
        for (size_t j = 0; j < d; j++) {
            out.x[i * d + j] = c[j] + 0.4f * normal(rng);
        }
    }
    return out;
}

Rows sample(const char* name) {
    std::ifstream in(std::string(SAMPLES) + "/" + name, std::ios::binary);
    uint32_t shape[2] = {};
    in.read(reinterpret_cast<char*>(shape), sizeof(shape));
    std::vector<uint8_t> bytes(size_t(shape[0]) * shape[1]);
    in.read(reinterpret_cast<char*>(bytes.data()), bytes.size());
    return {shape[0], shape[1], std::vector<float>(bytes.begin(), bytes.end())};
}

double seconds() {
    timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return double(t.tv_sec) + 1e-9 * double(t.tv_nsec);
}

/// Many calls of one kind.
struct Calls {
    double total = 0, longest = 0;
    template <class F>
    void time(F&& f) {
        const double start = seconds();
        f();
        const double took = seconds() - start;
        total += took;
        longest = std::max(longest, took);
    }
};

std::unique_ptr<faiss::IndexIVF> make(
        const std::string& description, const Rows& x, size_t n_train) {
    std::unique_ptr<faiss::Index> index(
            faiss_ext::index_factory(int(x.d), description.c_str()));
    index->train(idx_t(n_train), x.x.data());
    return std::unique_ptr<faiss::IndexIVF>(
            dynamic_cast<faiss::IndexIVF*>(index.release()));
}

void add_one(faiss::IndexIVF& index, const Rows& x, size_t row) {
    const idx_t id = idx_t(row);
    index.add_with_ids(1, x.row(row), &id);
}

void remove_one(faiss::IndexIVF& index, idx_t id) {
    index.remove_ids(faiss::IDSelectorArray(1, &id));
}

void adds() {
    constexpr size_t n = 100'000;
    const Rows x = clusters(2 * n, 64);
    printf("| %zu x 64, 256 lists, one at a time | IVF | GMM | times |\n"
           "|---|---|---|---|\n",
           n);
    Calls filling[2], window[2];
    for (int which = 0; which < 2; which++) {
        auto index = make(which ? "GMM256,Flat" : "IVF256,Flat", x, 20'000);
        for (size_t i = 0; i < n; i++) {
            filling[which].time([&] { add_one(*index, x, i); });
        }
        index->set_direct_map_type(faiss::DirectMap::Hashtable);
        for (size_t i = n; i < 2 * n; i++) {
            window[which].time([&] {
                add_one(*index, x, i);
                remove_one(*index, idx_t(i - n));
            });
        }
    }
    const auto print = [](const char* what, double ivf, double gmm) {
        printf("| %s | %.4g | %.4g | %.2f |\n", what, ivf, gmm, gmm / ivf);
    };
    print("additions to an empty index, s in all",
          filling[0].total,
          filling[1].total);
    print("longest, ms", 1e3 * filling[0].longest, 1e3 * filling[1].longest);
    print("window (one comes, one goes), s in all",
          window[0].total,
          window[1].total);
    print("longest pair, ms", 1e3 * window[0].longest, 1e3 * window[1].longest);
}

void single() {
    printf("| vectors (d = 16, 256 lists, Hashtable) | IVF remove, us | GMM | "
           "times | IVF update, us | GMM | times "
           "|\n|---|---|---|---|---|---|---|"
           "\n");
    for (size_t n : {50'000, 200'000, 800'000, 2'000'000}) {
        const Rows x = clusters(n, 16);
        double us[2][2];
        for (int which = 0; which < 2; which++) {
            auto index = make(which ? "GMM256,Flat" : "IVF256,Flat", x, 20'000);
            index->add(idx_t(n), x.x.data());
            index->set_direct_map_type(faiss::DirectMap::Hashtable);
            constexpr size_t kCalls = 2000;
            Calls removals, updates;
            for (size_t i = 0; i < kCalls; i++) {
                removals.time([&] { remove_one(*index, idx_t(7 * i)); });
                const idx_t id = idx_t(7 * i + 3);
                updates.time(
                        [&] { index->update_vectors(1, &id, x.row(11 * i)); });
            }
            us[which][0] = 1e6 * removals.total / kCalls;
            us[which][1] = 1e6 * updates.total / kCalls;
        }
        printf("| %zu | %.1f | %.1f | %.2f | %.1f | %.1f | %.2f |\n",
               n,
               us[0][0],
               us[1][0],
               us[1][0] / us[0][0],
               us[0][1],
               us[1][1],
               us[1][1] / us[0][1]);
    }
}

/// Of rows [begin, end) of the base, whose ids are their numbers.
double recall(
        const faiss::IndexIVF& index,
        const Rows& base,
        size_t begin,
        size_t end,
        const Rows& q,
        size_t first,
        float target) {
    constexpr idx_t k = 10;
    const size_t nq = q.n - first, d = base.d;
    faiss_ext::SearchParametersIVFGMM params;
    params.target_recall = target;
    std::vector<float> distances(nq * k);
    std::vector<idx_t> ids(nq * k);
    index.search(
            idx_t(nq), q.row(first), k, distances.data(), ids.data(), &params);
    size_t found = 0;
    for (size_t i = 0; i < nq; i++) {
        std::vector<float> all;
        for (size_t r = begin; r < end; r++) {
            all.push_back(faiss::fvec_L2sqr(q.row(first + i), base.row(r), d));
        }
        std::nth_element(all.begin(), all.begin() + k - 1, all.end());
        for (idx_t j = 0; j < k; j++) {
            found += ids[i * k + j] >= 0 &&
                    distances[i * k + j] <= all[k - 1] * 1.00001f;
        }
    }
    return double(found) / double(nq * k);
}

/// Half of the base is in; the other half takes its place, or joins it.
void turnover() {
    Rows base = sample("sift_sample_base.u8bin");
    const Rows q = sample("sift_sample_query.u8bin");
    const size_t half = base.n / 2, given = q.n / 2;
    printf("| SIFT, 25,000 of 50,000, 64 lists | replaced or added | due | "
           "target 0.9 | 0.95 | maintained: 0.9 | 0.95 |\n"
           "|---|---|---|---|---|---|---|\n");
    for (const char* how :
         {"replaced, at random",
          "replaced, by the far ones",
          "added one by one"}) {
        if (how[10] == 'b') { // the near half is replaced by the far half
            std::vector<size_t> order(base.n);
            std::iota(order.begin(), order.end(), 0);
            std::vector<float> to(base.n);
            for (size_t i = 0; i < base.n; i++) {
                to[i] = faiss::fvec_L2sqr(base.row(0), base.row(i), base.d);
            }
            std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
                return to[a] < to[b];
            });
            Rows sorted = base;
            for (size_t i = 0; i < base.n; i++) {
                std::copy_n(base.row(order[i]), base.d, &sorted.x[i * base.d]);
            }
            base = std::move(sorted);
        }
        auto index = make("GMM64,Flat", base, half);
        index->add(idx_t(half), base.x.data());
        index->set_direct_map_type(faiss::DirectMap::Hashtable);
        faiss_ext::IVFGMM& gmm = *faiss_ext::extract_gmm(index.get());
        gmm.calibrate(given, q.x.data(), 10);
        const bool replace = how[0] == 'r';
        size_t done = 0;
        for (double share : {0.0, 0.2, 0.5, 1.0}) {
            for (; done < size_t(share * double(half)); done++) {
                add_one(*index, base, half + done);
                if (replace) {
                    remove_one(*index, idx_t(done));
                }
            }
            const size_t begin = replace ? done : 0, end = half + done;
            const auto of = [&](const faiss::IndexIVF& i, float target) {
                return recall(i, base, begin, end, q, given, target);
            };
            std::unique_ptr<faiss::Index> copy =
                    faiss_ext::clone_index(index.get());
            faiss_ext::extract_gmm(copy.get())->maintain();
            const auto& fresh = dynamic_cast<const faiss::IndexIVF&>(*copy);
            printf("| %s | %.0f %% | %s | %.3f | %.3f | %.3f | %.3f |\n",
                   how,
                   100 * share,
                   gmm.maintenance_due() ? "yes" : "no",
                   of(*index, 0.9f),
                   of(*index, 0.95f),
                   of(fresh, 0.9f),
                   of(fresh, 0.95f));
        }
    }
}

} // namespace

int main(int argc, char** argv) {
    omp_set_num_threads(1);
    setvbuf(stdout, nullptr, _IOLBF, 0);
    const std::set<std::string> parts(argv + 1, argv + argc);
    const auto wanted = [&](const char* part) {
        return parts.empty() || parts.count(part) > 0;
    };
    if (wanted("adds")) {
        adds();
    }
    if (wanted("single")) {
        single();
    }
    if (wanted("turnover")) {
        turnover();
    }
}
