#include "faiss_ext/store/take_entries.h"

#include <cinttypes>
#include <memory>
#include <string>

#include <faiss/impl/FaissAssert.h>

#include "ParallelFor.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/store/codes_alone.h"
#include "faiss_ext/store/edit.h"
#include "faiss_ext/store/maintain.h"
#include "faiss_ext/store/strays.h"

namespace faiss_ext {

namespace {

/// Throws unless idx_t holds all ids.
void check_sums(const idx_t* ids, size_t n, idx_t add_id) {
    for (size_t j = 0; j < n; j++) {
        idx_t sum;
        FAISS_THROW_IF_NOT_FMT(
                !__builtin_add_overflow(ids[j], add_id, &sum),
                "add_id = %" PRId64 " with id %" PRId64
                ", expected a sum that 64 bits hold",
                int64_t(add_id),
                int64_t(ids[j]));
    }
}

} // namespace

bool has_subset(
        const faiss::IndexIVF& from,
        const faiss::IndexIVF& other,
        int kind,
        idx_t a1,
        idx_t a2) {
    FAISS_THROW_IF_NOT_MSG(
            other.is_trained, "copy_subset_to: expected a trained index");
    check_same_encoding("copy_subset_to", from, other);
    const bool of_parts = kind == 1 || kind == 3; // newer FAISS: a2 of a1 parts
    const idx_t stored = idx_t(from.invlists->compute_ntotal());
    if (stored == 0 && kind == 2) { // FAISS divides by it
        return false;
    }
    FAISS_THROW_IF_NOT_FMT( // FAISS divides by it
            !of_parts || a1 > 0,
            "copy_subset_to: a1 = %zd, expected above 0",
            ssize_t(a1));
    const std::string expected = of_parts ? "0 <= a2 < a1"
            : kind == 2 ? "0 <= a1 <= a2 <= " + std::to_string(stored)
                        : "a1 <= a2";
    FAISS_THROW_IF_NOT_FMT(
            of_parts ? kind == 1 || (a2 >= 0 && a2 < a1)
                     : a1 <= a2 && (kind != 2 || (a1 >= 0 && a2 <= stored)),
            "copy_subset_to: a1 = %zd, a2 = %zd, expected %s",
            ssize_t(a1),
            ssize_t(a2),
            expected.c_str());
    return true;
}

void take_entries(
        GMMIndexRef index,
        const faiss::InvertedLists& from,
        idx_t ntotal,
        idx_t add_id,
        const std::vector<std::vector<int32_t>>& earlier) {
    faiss::IndexIVF& ivf = index.ivf;
    check_writable(ivf);
    if (ivf.ntotal == 0) {
        begin_anew(index);
    }
    adopt_strays(index);
    using Codes = faiss::InvertedLists::ScopedCodes;
    using Ids = faiss::InvertedLists::ScopedIds;
    std::vector<std::unique_ptr<Codes>> codes;
    std::vector<std::unique_ptr<Ids>> ids;
    Edit edit(index);
    for (size_t i = 0; i < ivf.nlist; i++) {
        const size_t n = from.list_size(i);
        if (n == 0) {
            continue;
        }
        codes.push_back(std::make_unique<Codes>(&from, i));
        ids.push_back(std::make_unique<Ids>(&from, i));
        Arrivals& a = edit.arrivals.emplace_back();
        a.list = i;
        a.n = n;
        a.codes = codes.back()->get();
        a.ids = ids.back()->get();
        a.add_id = add_id;
        check_sums(a.ids, n, add_id);
        if (!earlier.empty()) {
            a.earlier = earlier[i];
        }
    }
    if (!has_vectors(ivf)) {
        for (Arrivals& a : edit.arrivals) {
            place_records(index, a);
        }
    } else if (!index.gmm.cells.empty()) {
        const MeansView means(ivf);
        gmm::parallel_for(edit.arrivals.size(), [&](size_t i) {
            Arrivals& a = edit.arrivals[i];
            std::vector<float> x(a.n * ivf.d);
            decode_codes(ivf, a.list, a.n, a.codes, x.data());
            a.place(index, x.data(), means.data());
        });
    }
    edit.prepare();
    edit.commit();
    ivf.ntotal += ntotal;
}

void add_subset(GMMIndexRef index, const faiss::InvertedLists& subset) {
    Growth growth(index, "copy_subset_to");
    // FAISS counts some ranges of elements as one less than it copies
    take_entries(index, subset, idx_t(subset.compute_ntotal()), 0, {});
    growth.finish();
}

} // namespace faiss_ext
