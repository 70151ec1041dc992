#pragma once

#include <cstddef>
#include <exception>
#include <vector>

#include "faiss_ext/store/edit.h"

namespace faiss_ext {

/// What an empty index was filled with before is forgotten, and whatever was
/// made for it.
void begin_anew(GMMIndexRef index) noexcept;

/** Chooses L for what the index holds and sorts every list into its cells.
 * Nothing is changed if it throws. In memory beside the index: 4 bytes for each
 * entry, and its payload. Time O(ntotal L d). */
void rebuild_cells(GMMIndexRef index);

/// Makes the codes of all entries in cells, which stay where they are.
void make_codes(GMMIndexRef index);

/** Fits the cells of those lists anew that have doubled since they were fitted,
 * if that costs no more than a few milliseconds or what adding n vectors does;
 * others stay due, and so does what there is no memory for. */
void refit_grown_lists(
        GMMIndexRef index, const std::vector<Arrivals>& arrivals, size_t n);

/// See IVFGMM.
bool maintenance_due(GMMIndexRef index);
void maintain(GMMIndexRef index);

/** Entries that come in by one call: says how many are in if it fails, and
 * makes cells and calibration anew afterwards if they are at least half of the
 * index. */
class Growth {
public:
    /// Throws for code_bits that cells cannot be made with afterwards.
    Growth(GMMIndexRef index, const char* call);

    /// Throws, with what e says, if anything is in; returns otherwise.
    void explain(const std::exception& e) const;

    void finish();

private:
    GMMIndexRef index;
    const char* const call;
    const idx_t before;
};

} // namespace faiss_ext
