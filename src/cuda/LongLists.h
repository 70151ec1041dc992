#pragma once

#include "Dense.h"
#include "Sparse.h"

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
bool can_list_all(int rows, const EntryRoom&);
/// Does so: evaluates all exactly and appends count * k entries, most of them
/// 0. Parameters are as below.
void list_all(
        const Model&,
        const PreparedRows&,
        int64_t row_begin,
        float power,
        const float* row_weight,
        const uint32_t* numbers,
        int count,
        const EntryRoom&,
        float* row_lse,
        cudaStream_t);

struct LongLists {
    /// Longest list; beyond it the dense path is no slower.
    static constexpr uint32_t kLongest = 512;

    void reserve();
    size_t bytes() const {
        return memory_.bytes();
    }

    int64_t entries = 0; ///< appended
    int left = 0;        ///< rows for the dense path
    int left_begin = 0;  ///< where they are among the numbers

    /** @param numbers  rows within the block, size count; those that are left
     *                  lie together afterwards, in order
     *  @param row_lse  of the block; the listed rows' are filled in
     *  @param borrowed  the dense path's scratch, which is used after */
    void run(
            const ScoreKernels&,
            const Model&,
            const PreparedRows&,
            int64_t row_begin,
            float power,
            const float* row_weight,
            uint32_t* numbers,
            int count,
            float bound,
            float slack,
            const EntryRoom&,
            float* row_lse,
            const DenseStep& borrowed,
            cudaStream_t);

private:
    DeviceMemory memory_;
    PinnedMemory totals_;
};

} // namespace gmm::cuda
