#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include <faiss/IndexIVFPQ.h>
#include <faiss/invlists/InvertedLists.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/coarse/QueryCoarse.h"
#include "faiss_ext/codes/kernels.h"
#include "faiss_ext/scan/VectorDecoder.h"

namespace faiss_ext {

/// Has the system begin to read what is mapped there.
void read_ahead(const void* begin, size_t bytes);

/** One thread's distances of a query to single entries, wherever they are:
 * squared, or negated inner products, so that less is nearer.
 *
 * Codes that are not floats are decoded: the distance is to what the index
 * would reconstruct.
 */
class ExactDistances {
public:
    static constexpr bool of_codes = false;

    ExactDistances(const faiss::IndexIVF& ivf, const IVFGMM&);

    void set_query(const float* q, const float*, QueryCoarse&, float) {
        query = q;
        tables_of_query = false;
    }

    /// Entries ahead that are fetched.
    size_t ahead() const {
        return on_disk ? kAheadOnDisk : kAhead;
    }

    void prefetch(size_t list, size_t entry) {
        if (on_disk) {
            if (n_cold > 0) {
                n_cold--;
                read_ahead(
                        on_disk->get_codes(list) + entry * code_size,
                        code_size);
            }
        } else if (in_memory) {
            const uint8_t* code =
                    in_memory->codes[list].data() + entry * code_size;
            for (size_t b = 0; b < code_size; b += 64) {
                __builtin_prefetch(code + b);
            }
        }
    }

    float operator()(size_t list, size_t entry) {
        const float* x = decoded.data();
        if (on_disk) {
            touch(on_disk->get_codes(list) + entry * code_size);
        }
        if (flat && on_disk) {
            x = reinterpret_cast<const float*>(
                    on_disk->get_codes(list) + entry * code_size);
        } else if (flat && in_memory) {
            x = reinterpret_cast<const float*>(
                    in_memory->codes[list].data() + entry * code_size);
        } else {
            decode(list, entry, decoded.data());
        }
        return similarity ? -kernels.inner_product(query, x, d)
                          : kernels.squared_distance(query, x, d);
    }

    /// Those to n consecutive entries.
    void all(size_t list, size_t begin, size_t n, float* out) {
        if (flat && (in_memory || on_disk)) {
            const uint8_t* x = in_memory ? in_memory->codes[list].data()
                                         : on_disk->get_codes(list);
            kernels.all_distances(
                    similarity,
                    query,
                    reinterpret_cast<const float*>(x + begin * code_size),
                    n,
                    d,
                    out);
        } else if (pq) {
            by_tables(
                    list, n, [&](size_t i) { return begin + i; }, out);
        } else {
            for (size_t i = 0; i < n; i++) {
                out[i] = (*this)(list, begin + i);
            }
        }
    }

    /// Those to n entries of a list, which are left of `passing` ones: these
    /// say how, so that a shard, which does not know what is left out, gives
    /// the same bits.
    void some(
            size_t list,
            const uint32_t* entries,
            size_t n,
            size_t passing,
            float* out) {
        if (passing >= least_by_tables) {
            by_tables(
                    list, n, [&](size_t i) { return entries[i]; }, out);
            return;
        }
        for (size_t i = 0; i < n; i++) {
            out[i] = (*this)(list, entries[i]);
        }
    }

private:
    static constexpr size_t kAhead = 8;
    /// A disk serves many reads at a time.
    static constexpr size_t kAheadOnDisk = 64;
    /// After a wait for the disk so many entries are asked for ahead: asking
    /// costs more than comparing what is in memory.
    static constexpr size_t kColdEntries = 1024;
    static constexpr double kWaitSeconds = 5e-6;

    /// As FAISS's scanner does it: those to entry(i), i < n.
    template <class Entry>
    void by_tables(size_t list, size_t n, Entry&& entry, float* out) {
        set_tables(list);
        faiss::InvertedLists::ScopedCodes codes(pq->invlists, list);
        for (size_t i = 0; i < n; i++) {
            const float distance = tables->distance_to_code(
                    codes.get() + entry(i) * code_size);
            out[i] = similarity ? -distance : distance;
        }
    }

    void set_tables(size_t list);

    /// Reads the first byte, and sees whether that takes the time of a disk.
    void touch(const uint8_t* code);

    const CodeKernels& kernels = best_code_kernels();
    const size_t d, code_size;
    const bool similarity, flat;
    const faiss::ArrayInvertedLists* const in_memory; ///< or nullptr
    const faiss::OnDiskInvertedLists* const on_disk;  ///< or nullptr
    /// Entries for which a wait must be expected; outlives single searches.
    static inline thread_local size_t n_cold = kColdEntries;
    const float* query = nullptr;
    /// With a product quantizer, whose vectors take longer to decode; or
    /// nullptr.
    const faiss::IndexIVFPQ* const pq;
    /// Fewer entries of a list are decoded before tables of it are made.
    const size_t least_by_tables;
    std::unique_ptr<faiss::InvertedListScanner> tables; ///< once asked for
    bool tables_of_query = false;
    size_t tables_of_list = 0;
    const float* const means; ///< for tables
    const VectorDecoder decode;
    std::vector<float> decoded;
};

} // namespace faiss_ext
