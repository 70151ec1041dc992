#pragma once

#include "cuda/dense/Dense.h"
#include "cuda/sparse/Sparse.h"

/** Rows whose lists overflowed in select, once more with longer lists.
 *
 * Their scores go to a bounded scratch; what lies within the bound is then
 * evaluated exactly and appended to the block's entries. Rows that even this
 * is too short for (a long list, or no room behind the entries) are left to
 * the dense path: few responsibilities weigh much there, and components are
 * wide. Where that is most of the first rows, the others are not tried.
 */
namespace gmm::cuda {

/** Whether rows are so few that each may list all components: nothing has to be
 * found first, nor waited for. */
bool can_take_all_pairs(int rows, const TripleRoom&);
/// Does so: evaluates all exactly. The entries that it appends: count * k, most
/// of them 0.
int64_t exact_all_pairs(
        const Model&, const NumberedRows&, const TripleRoom&, cudaStream_t);

struct LongLists {
    /// Longest list; beyond it the dense path is no slower.
    static constexpr uint32_t kLongest = 512;

    void reserve();
    size_t bytes() const {
        return memory_.bytes();
    }

    /** @param rest  afterwards those that are left for the dense path
     *  @param borrowed  the dense path's scratch, which is used after
     *  @return  entries appended */
    int64_t run(
            const ScoreKernels&,
            const Model&,
            NumberedRows& rest,
            float bound,
            float slack,
            const TripleRoom&,
            const DenseStep& borrowed,
            cudaStream_t);

private:
    DeviceMemory memory_;
    PinnedMemory totals_;
};

} // namespace gmm::cuda
