/// Searches of one index file: what bench/python_overhead.py compares with.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "faiss_ext/impl/faiss_compat.h"
#include "faiss_ext/index_io.h"
#include "vector_files.h"

int main(int argc, char** argv) {
    if (argc != 5) {
        fprintf(stderr,
                "usage: python_overhead INDEX QUERIES.fbin K SECONDS\n");
        return 2;
    }
    const std::unique_ptr<faiss::Index> index(faiss_ext::read_index(argv[1]));
    const bench::Vectors queries = bench::read_vectors(argv[2], "test");
    const size_t k = std::atoi(argv[3]), n = queries.n;
    const double seconds = std::atof(argv[4]);
    std::vector<float> distances(n * k);
    std::vector<faiss_ext::idx_t> labels(n * k);
    using Clock = std::chrono::steady_clock;
    auto elapsed = [](Clock::time_point since) {
        return std::chrono::duration<double>(Clock::now() - since).count();
    };

    // One query at a time, the same in each pass; the least of each.
    std::vector<double> least(n, 1e9);
    const auto begin = Clock::now();
    while (elapsed(begin) < seconds) {
        for (size_t i = 0; i < n; i++) {
            const auto start = Clock::now();
            index->search(
                    1, queries.row(i), k, distances.data(), labels.data());
            least[i] = std::min(least[i], elapsed(start));
        }
    }
    double one = 0;
    for (double t : least) {
        one += t / n;
    }
    double all = 1e9;
    const auto second = Clock::now();
    while (elapsed(second) < seconds) {
        const auto start = Clock::now();
        index->search(n, queries.row(0), k, distances.data(), labels.data());
        all = std::min(all, elapsed(start));
    }
    printf("{\"one_us\": %.3f, \"all_us\": %.3f}\n", one * 1e6, all * 1e6);
}
