#include "faiss_ext/scan/ExactDistances.h"

#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>

#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/utils/distances.h>

#include "faiss_ext/coarse/coarse.h"

namespace faiss_ext {

void read_ahead(const void* begin, size_t bytes) {
    static const uintptr_t page = uintptr_t(sysconf(_SC_PAGESIZE));
    const uintptr_t from = uintptr_t(begin) / page * page;
    // advice: whether it is taken does not matter
    madvise(reinterpret_cast<void*>(from),
            uintptr_t(begin) + bytes - from,
            MADV_WILLNEED);
}

namespace {

/// Making tables takes as long as decoding and comparing so many vectors and
/// one for so many centroids of each part, about.
constexpr size_t kDecodedInstead = 2, kCentroidsOfOne = 8;

} // namespace

ExactDistances::ExactDistances(const faiss::IndexIVF& ivf_in, const IVFGMM&)
        : d(ivf_in.d), code_size(ivf_in.code_size), similarity(is_ip(ivf_in)),
          flat(dynamic_cast<const faiss::IndexIVFFlat*>(&ivf_in) &&
               ivf_in.code_size == ivf_in.d * sizeof(float)),
          in_memory(dynamic_cast<const faiss::ArrayInvertedLists*>(
                  ivf_in.invlists)),
          on_disk(dynamic_cast<const faiss::OnDiskInvertedLists*>(
                  ivf_in.invlists)),
          pq(means_in_memory(ivf_in)
                     ? dynamic_cast<const faiss::IndexIVFPQ*>(&ivf_in)
                     : nullptr),
          least_by_tables(
                  pq ? kDecodedInstead + pq->pq.ksub / kCentroidsOfOne
                     : size_t(-1)),
          means(means_in_memory(ivf_in)), decode(ivf_in),
          decoded(flat && (in_memory || on_disk) ? 0 : ivf_in.d) {}

void ExactDistances::set_tables(size_t list) {
    if (!tables) {
        tables.reset(make_scanner(*pq));
    }
    if (!tables_of_query) {
        tables->set_query(query);
    }
    if (!tables_of_query || tables_of_list != list) {
        const float* mean = means + list * d;
        tables->set_list(
                list,
                similarity ? faiss::fvec_inner_product(query, mean, d)
                           : faiss::fvec_L2sqr(query, mean, d));
    }
    tables_of_query = true;
    tables_of_list = list;
}

void ExactDistances::touch(const uint8_t* code) {
    using Clock = std::chrono::steady_clock;
    const Clock::time_point start = Clock::now();
    static_cast<void>(*static_cast<const volatile uint8_t*>(code));
    const std::chrono::duration<double> waited = Clock::now() - start;
    if (waited.count() > kWaitSeconds) {
        n_cold = kColdEntries;
    }
}

} // namespace faiss_ext
