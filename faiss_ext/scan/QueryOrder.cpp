#include "faiss_ext/scan/QueryOrder.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ParallelFor.h"
#include "faiss_ext/coarse/Queries.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/codes/kernels.h"

namespace faiss_ext {

namespace {

/// Fewer groups are not worth the order.
constexpr size_t kFewestGroups = 4;
/// So many bytes of codes stay in a processor's last cache.
constexpr size_t kCached = size_t(16) << 20;

} // namespace

QueryOrder::QueryOrder(
        const faiss::IndexIVF& ivf,
        const CellCodes& codes,
        size_t n,
        const float* x) {
    const float* means = means_in_memory(ivf);
    const size_t d = ivf.d, nlist = ivf.nlist;
    const size_t groups =
            std::min(n / kQueryBlock, size_t(std::sqrt(double(nlist))));
    if (groups < kFewestGroups || !means ||
        ivf.ntotal * codes.shape.entry_bytes() < kCached ||
        n > std::numeric_limits<uint32_t>::max()) {
        return;
    }
    std::vector<float> some(groups * d); // of the means, all over the numbers
    for (size_t g = 0; g < groups; g++) {
        std::copy_n(means + g * nlist / groups * d, d, &some[g * d]);
    }
    std::vector<uint16_t> group(n);
    gmm::parallel_for((n + kQueryBlock - 1) / kQueryBlock, [&](size_t b) {
        std::vector<float> distances(groups);
        const size_t end = std::min(n, (b + 1) * kQueryBlock);
        for (size_t i = b * kQueryBlock; i < end; i++) {
            best_code_kernels().all_distances(
                    is_ip(ivf),
                    x + i * d,
                    some.data(),
                    groups,
                    d,
                    distances.data());
            group[i] = uint16_t(
                    std::min_element(distances.begin(), distances.end()) -
                    distances.begin());
        }
    });
    std::vector<size_t> begin(groups + 1);
    for (uint16_t g : group) {
        begin[g + 1]++;
    }
    for (size_t g = 0; g < groups; g++) {
        begin[g + 1] += begin[g];
    }
    numbers.resize(n);
    for (size_t i = 0; i < n; i++) {
        numbers[begin[group[i]]++] = uint32_t(i);
    }
}

} // namespace faiss_ext
