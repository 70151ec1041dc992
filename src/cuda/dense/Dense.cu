#include <algorithm>

#include "cuda/dense/Dense.h"
#include "cuda/operands/AugmentedOperands.h"

namespace gmm::cuda {

namespace {

/// Rows of a block of the Hopper kernel.
constexpr int kScoreRows = 192;

/// Tiles of rows that the fused kernel sums in registers at most: the matrix
/// units round towards zero, and that adds up.
constexpr int kChainTiles = 64;

struct MergeArgs {
    float* lse; ///< [splits][rows]
    int splits, rows;
    const uint32_t* numbers; ///< or nullptr: rows are where they were, and
                             ///< those that have a log-sum-exp are left out
    float* row_lse;
    // For the fused kernel, whole tiles of rows:
    const float* row_constant;
    const float* weight; ///< or nullptr
    float unfold;
    __half* slots; ///< [rows][kWideSlots], or nullptr
};

/// Parts of a row's log-sum-exp to the whole, to the row's place and its slots.
/// A thread a row, of whole tiles.
__global__ void merge_kernel(const __grid_constant__ MergeArgs args) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    float all = 0;
    const bool inside =
            i < args.rows && (args.numbers || isnan(args.row_lse[i]));
    if (inside) {
        float best = -3e38f, sum = 0;
        for (int s = 0; s < args.splits; s++) {
            best = fmaxf(best, args.lse[size_t(s) * args.rows + i]);
        }
        for (int s = 0; s < args.splits; s++) {
            sum += exp2f(args.lse[size_t(s) * args.rows + i] - best);
        }
        all = args.splits == 1 ? best : best + log2f(sum);
        args.lse[i] = all;
        args.row_lse[args.numbers ? args.numbers[i] : i] = all;
    }
    if (args.slots) {
        const float weight = !inside ? 0.f : args.weight ? args.weight[i] : 1.f;
        __half* const to = args.slots + size_t(i) * kWideSlots;
        put_row_slots(to, args.row_constant[i] * args.unfold);
        put_lowering_slots(
                to + kAugmentedSlots,
                weight > 0 ? all - log2f(weight * kResponsibilityScale)
                           : 3e38f);
    }
}

__global__ void __launch_bounds__(128) collect_kernel(
        const float* partial,
        const double* totals,
        int splits,
        int total_splits,
        int parts,
        int padded_k,
        const __grid_constant__ DeviceSums sums) {
    const int k = blockIdx.x;
    const int d = sums.d;
    for (int j = threadIdx.x; j < 2 + d * parts; j += blockDim.x) {
        double sum = 0;
        if (j < 2) {
            for (int s = 0; s < total_splits; s++) {
                sum += totals[(size_t(s) * padded_k + k) * 2 + j];
            }
            (j ? sums.constant : sums.n_k)[k] += sum;
            continue;
        }
        const int part = (j - 2) / d, column = (j - 2) % d;
        for (int s = 0; s < splits; s++) {
            sum +=
                    partial[(size_t(s) * parts + part) * padded_k * d +
                            size_t(k) * d + column];
        }
        (part ? sums.y2 : sums.y)[size_t(k) * d + column] +=
                sum / kResponsibilityScale;
    }
}

/// A thread a component.
__global__ void narrow_kernel(
        const double* totals,
        int total_splits,
        int padded_k,
        int k,
        const unsigned char* narrow,
        unsigned char least,
        double* largest) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= k || narrow[i] < least) {
        return;
    }
    double sum = 0;
    for (int s = 0; s < total_splits; s++) {
        sum += totals[(size_t(s) * padded_k + i) * 2];
    }
    // Positive doubles compare as integers; a maximum has no order.
    atomicMax(
            reinterpret_cast<unsigned long long*>(largest),
            (unsigned long long)(__double_as_longlong(sum)));
}

} // namespace

int splits_of(int rows, int components) {
    const int row_blocks = (rows + kScoreRows - 1) / kScoreRows;
    return std::clamp(
            kDenseRows / kScoreRows / row_blocks,
            1,
            components / kComponentTile);
}

void DenseStep::reserve(
        int padded_k, int d, int planes, bool squares, bool lo, bool fused) {
    fused_ = fused;
    capacity_ = fused ? 5 * kDenseRows : kDenseRows;
    const size_t prepared =
            capacity_ * prepared_row_bytes(d, planes) + kPreparedSlack;
    const size_t slots = capacity_ * (fused ? kWideSlots * sizeof(__half) : 0);
    rows_memory_.reserve(prepared + slots + capacity_ * 3 * sizeof(float));
    rows_.lay_out(rows_memory_.as<char>(), capacity_, d, planes);
    slots_ = fused ? rows_memory_.as<__half>(prepared) : nullptr;
    weight_ = rows_memory_.as<float>(prepared + slots);
    lse_ = weight_ + capacity_;
    value_ = lse_ + capacity_;

    // With the scores of all components, fewer rows at a time; where steps are
    // for rows apart, as many as the scratch holds that long lists borrow.
    const bool scored = (!fused || lo) && padded_k <= kDenseScored;
    const int scored_components =
            fused ? kDenseComponents / 2 : 2 * kDenseComponents;
    step_rows_ = scored
            ? std::min(
                      kDenseRows,
                      kDenseRows / kDenseTileRows * scored_components /
                              padded_k * kDenseTileRows)
            : kDenseRows;
    const size_t tile = scored ? size_t(step_rows_) * padded_k
                               : size_t(kDenseRows) * kDenseComponents;
    scratch_.reserve(tile * (2 * (lo ? 2 : 1) + (scored ? 4 : 0)));
    hi_ = scratch_.as<__half>();
    lo_ = lo ? hi_ + tile : nullptr;
    scores_ = scored ? scratch_.as<float>(tile * 2 * (lo ? 2 : 1)) : nullptr;

    padded_k_ = padded_k;
    d_ = d;
    parts_ = squares ? 2 : 1;
    const size_t one = size_t(parts_) * padded_k * d * sizeof(float);
    if (fused) {
        // One block for each of an H100's processors.
        splits_ = total_splits_ = std::max(1, 132 * kComponentTile / padded_k);
        clusters_ = padded_k <= kMaxCtaCluster * kComponentTile
                ? std::min(splits_, cta_clusters(d, padded_k))
                : 0;
    } else {
        const int components =
                scored ? padded_k : std::min(padded_k, kDenseComponents);
        const int tiles = components / kDenseProductTile *
                ((d + kDenseProductTile - 1) / kDenseProductTile) * parts_;
        splits_ = product_splits(
                tiles,
                step_rows_,
                int(std::clamp<size_t>((size_t(128) << 20) / one, 1, 32)));
        total_splits_ = kDenseTotalSplits;
        clusters_ = 0;
    }
    apart_splits_ = lo ? kDenseTotalSplits : 0;
    const size_t total_bytes = size_t(total_splits_ + apart_splits_) *
            padded_k * 2 * sizeof(double);
    sums_.reserve(splits_ * one + total_bytes);
    totals_ = sums_.as<double>();
    partial_ = sums_.as<float>(total_bytes);
}

void DenseStep::release() {
    rows_memory_.release();
    scratch_.release();
    sums_.release();
}

size_t DenseStep::bytes() const {
    return rows_memory_.bytes() + scratch_.bytes() + sums_.bytes();
}

void DenseStep::begin() {
    used_ = false;
}

void DenseStep::use(cudaStream_t stream) {
    if (!used_) {
        check(cudaMemsetAsync(sums_.as<char>(), 0, sums_.bytes(), stream),
              "clearing");
    }
    used_ = true;
}

void DenseStep::accumulate(
        const ScoreKernels& score,
        const Model& model,
        const NumberedRows& some,
        int block_rows,
        bool lo,
        bool apart,
        cudaStream_t stream) {
    const auto& [from, row_begin, fp16_scale, row_weight, row_lse, numbers, count] =
            some;
    use(stream);
    rows_.row_value = from.row_value ? value_ : nullptr;
    const bool fused = fused_ && !apart;
    const int most = fused
            ? std::min(capacity_, splits_ * kChainTiles * kDenseTileRows)
            : step_rows_;
    int done = 0;
    const int whole = block_rows / kDenseTileRows * kDenseTileRows;
    if (fused && whole && count >= block_rows / 4 * 3) {
        // Where they are; what follows whole tiles is gathered.
        for (int begin = 0; begin < whole; begin += most) {
            const DenseRows block{
                    from,
                    row_begin + begin,
                    std::min(most, whole - begin),
                    row_weight ? row_weight + begin : nullptr,
                    nullptr,
                    row_lse + begin,
                    lo,
                    false};
            sum_fused(score, model, block, fp16_scale, stream);
        }
        done = count;
        if (whole < block_rows) {
            uint32_t last[kDenseTileRows];
            const int tail = std::min(count, kDenseTileRows);
            check(cudaMemcpyAsync(
                          last,
                          numbers + count - tail,
                          tail * sizeof(uint32_t),
                          cudaMemcpyDeviceToHost,
                          stream),
                  "reading the last rows");
            check(cudaStreamSynchronize(stream), "the dense path");
            const uint32_t* const behind =
                    std::lower_bound(last, last + tail, uint32_t(whole));
            done -= int(last + tail - behind);
        }
    }
    for (int begin = done, rows; begin < count; begin += rows) {
        rows = std::min(most, count - begin);
        gather_rows(
                from,
                row_begin,
                row_weight,
                numbers + begin,
                rows,
                rows_,
                weight_,
                stream);
        const DenseRows block{
                rows_,
                0,
                rows,
                row_weight ? weight_ : nullptr,
                numbers + begin,
                row_lse,
                lo || apart,
                apart};
        if (fused) {
            sum_fused(score, model, block, fp16_scale, stream);
        } else {
            sum_in_steps(score, model, block, fp16_scale, stream);
        }
    }
}

void DenseStep::find_lse(
        const ScoreKernels& score,
        const ScoreArgs& args,
        const DenseRows& block,
        float fp16_scale,
        cudaStream_t stream) {
    score(args, LseArgs{lse_}, stream);
    const int tiles = (block.count + kDenseTileRows - 1) / kDenseTileRows;
    const MergeArgs merge{
            lse_,
            args.splits,
            block.count,
            block.numbers,
            block.row_lse,
            args.row_constant,
            block.weight,
            1 / augmented_scale(d_, fp16_scale),
            slots_};
    merge_kernel<<<tiles, kDenseTileRows, 0, stream>>>(merge);
    check_launch("merging of sums");
}

void DenseStep::sum_fused(
        const ScoreKernels& score,
        const Model& model,
        const DenseRows& block,
        float fp16_scale,
        cudaStream_t stream) {
    const PreparedRows& from = block.rows;
    const bool lo = block.lo;
    ScoreArgs args = model.score_args(lo);
    args.rows_operand = from.operand;
    args.row_begin = block.begin;
    args.rows = block.count;
    args.row_constant =
            (lo ? from.row_constant : from.row_constant_hi) + block.begin;
    args.folded.row_slots = {
            from.row_slots, from.operand.rows, kAugmentedSlots, 1};
    args.splits = splits_of(block.count, padded_k_);
    find_lse(score, args, block, fp16_scale, stream);

    const AugmentedOperands& folded = model.folded_operands();
    DenseSumsArgs sums;
    sums.rows = from.operand;
    sums.row_begin = block.begin;
    sums.row_slots = {slots_, capacity_, kWideSlots, 1};
    sums.components = folded.components;
    sums.component_slots = folded.component_slots;
    sums.component_slots.planes = 1;
    if (lo) {
        sums.component_slots.data += size_t(padded_k_) * kWideSlots;
    }
    sums.row_constant = from.summed_constant(lo) + block.begin;
    sums.row_tiles = (block.count + kDenseTileRows - 1) / kDenseTileRows;
    sums.d = d_;
    sums.padded_k = padded_k_;
    sums.splits = splits_;
    sums.partial = partial_;
    sums.totals = totals_;
    dense_sums_hopper(sums, lo, stream);
}

void DenseStep::find_narrow(
        const Model& model,
        unsigned char least,
        double* largest,
        cudaStream_t stream) const {
    if (!used_) {
        return;
    }
    narrow_kernel<<<(model.k + 127) / 128, 128, 0, stream>>>(
            totals_,
            total_splits_,
            padded_k_,
            model.k,
            model.narrow,
            least,
            largest);
    check_launch("sums of narrow components");
}

void DenseStep::collect(const DeviceSums& sums, cudaStream_t stream) {
    if (!used_) {
        return;
    }
    collect_kernel<<<sums.k, 128, 0, stream>>>(
            partial_,
            totals_,
            splits_,
            total_splits_ + apart_splits_,
            parts_,
            padded_k_,
            sums);
    check_launch("collection of dense sums");
}

} // namespace gmm::cuda
