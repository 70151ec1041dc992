#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <faiss/Index.h>

/** What a benchmark asks of an index beyond faiss::Index. The only file of
 * the benchmarks that knows which kinds of index there are. */
namespace bench {

/** An empty index of a factory string.
 *
 * A coarse quantizer is trained on every vector that it is given: FAISS would
 * take at most 256 for each list, and two nlists would see different samples.
 */
std::unique_ptr<faiss::Index> build(
        const std::string& factory, int d, faiss::MetricType metric);

/// "nprobe=8,probe_mass=0.9"
void set_parameters(faiss::Index& index, const std::string& setting);

/// Returns what sets the search parameters back to what they are now.
std::function<void()> remember_parameters(faiss::Index& index);

/// What "nprobe=auto" stands for: values of nprobe from cheap to expensive;
/// none for an index without lists.
std::vector<std::string> nprobe_series(const faiss::Index& index);

/// Entries of the inverted lists for each vector.
double copies_per_vector(const faiss::Index& index);

/// The size of the file that the index would be written to.
size_t serialized_bytes(const faiss::Index& index);

/// Fits the index to queries. False if it is of a kind that has nothing to fit.
bool calibrate(faiss::Index& index, size_t nq, const float* xq, size_t k);

struct Counts {
    double distances = 0; ///< to stored vectors (or codes)
    double coarse = 0;    ///< to the coarse quantizer's means
    double scores = 0;    ///< of cells, each about four operations
    double codes = 0;     ///< looked at
    double refine = 0;    ///< of a refinement stage
};

/// The library's counters are global: reset, search, read.
void reset_counts();
Counts counts_per_query(const faiss::Index& index, size_t nq, size_t k);

} // namespace bench
