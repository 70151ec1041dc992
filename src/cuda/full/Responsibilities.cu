#include <cub/block/block_reduce.cuh>

#include <algorithm>

#include "cuda/engine/Check.h"
#include "cuda/full/Full.h"
#include "cuda/full/Ordered.cuh"

namespace gmm::cuda::full {

namespace {

constexpr double kOne = 1099511627776.; // 2^40, the unit of integer sums
constexpr int kThreads = 256;
/// Log-joints that many nats below a row's largest are not added: e^-40.
constexpr double kNegligible = 40;

__global__ void __launch_bounds__(kThreads)
        start_kernel(const RowTotals rows, int64_t count) {
    const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (i < count) {
        rows.best[i] = ordered(-INFINITY);
        rows.top[i] = ordered(-HUGE_VAL);
        rows.sum[i] = 0;
        rows.winner[i] = 0xffffffffu;
    }
}

__global__ void __launch_bounds__(kThreads)
        least_kernel(const RowTotals rows, int64_t count, float reach) {
    const int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x;
    if (i < (count + kBoundRows - 1) / kBoundRows * kBoundRows) {
        rows.least[i] = i < count ? unordered(rows.best[i]) - reach : INFINITY;
    }
}

__global__ void __launch_bounds__(kThreads) top_kernel(
        const PairLists lists, uint32_t pairs, const RowTotals rows) {
    const uint32_t p = blockIdx.x * kThreads + threadIdx.x;
    if (p < pairs) {
        atomicMax(rows.top + lists.row[p], ordered(lists.value[p]));
    }
}

/// Integers, so that the order of threads does not show.
__global__ void __launch_bounds__(kThreads) sum_kernel(
        const PairLists lists, uint32_t pairs, const RowTotals rows) {
    const uint32_t p = blockIdx.x * kThreads + threadIdx.x;
    if (p < pairs) {
        const int32_t row = lists.row[p];
        const double below = lists.value[p] - unordered(rows.top[row]);
        if (below > -kNegligible) {
            atomicAdd(
                    rows.sum + row,
                    (unsigned long long)(double(expf(float(below))) * kOne));
        }
    }
}

__global__ void __launch_bounds__(kThreads) winner_kernel(
        const PairLists lists, uint32_t pairs, const RowTotals rows) {
    const uint32_t p = blockIdx.x * kThreads + threadIdx.x;
    if (p < pairs) {
        const int32_t row = lists.row[p];
        if (ordered(lists.value[p]) == rows.top[row]) {
            atomicMin(rows.winner + row, p);
        }
    }
}

/// A block's rows: their log-likelihoods, and the sum of these.
__global__ void __launch_bounds__(kThreads) finish_kernel(
        const RowTotals rows,
        int64_t begin,
        int64_t end,
        const float* __restrict__ weight,
        bool hard,
        double* partial) {
    using Reduce = cub::BlockReduce<double, kThreads>;
    __shared__ typename Reduce::TempStorage shared;
    double sum = 0;
    for (int64_t i = begin + int64_t(blockIdx.x) * kThreads + threadIdx.x;
         i < end;
         i += int64_t(gridDim.x) * kThreads) {
        const double top = unordered(rows.top[i]);
        const double value =
                hard ? 2 * top : top + log(double(rows.sum[i]) / kOne);
        rows.log_prob[i] = value;
        const float w = weight ? weight[i] : 1.f;
        sum += w != 0 ? w * value : 0.;
    }
    sum = Reduce(shared).Sum(sum);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
    }
}

__global__ void __launch_bounds__(kThreads)
        collect_kernel(const double* partial, int n, double* to) {
    using Reduce = cub::BlockReduce<double, kThreads>;
    __shared__ typename Reduce::TempStorage shared;
    double sum = 0;
    for (int i = threadIdx.x; i < n; i += kThreads) {
        sum += partial[i];
    }
    sum = Reduce(shared).Sum(sum);
    if (threadIdx.x == 0) {
        *to += sum;
    }
}

__global__ void __launch_bounds__(kThreads) responsibility_kernel(
        const PairLists lists,
        uint32_t pairs,
        const float* __restrict__ weight,
        float least,
        bool hard,
        const RowTotals rows,
        const PassTotals totals) {
    const uint32_t p = blockIdx.x * kThreads + threadIdx.x;
    unsigned long long dropped = 0;
    bool kept = false;
    if (p < pairs) {
        const int32_t row = lists.row[p];
        const float w = weight ? weight[row] : 1.f;
        float r;
        if (hard) {
            r = rows.winner[row] == p;
        } else {
            const double below = lists.value[p] - rows.log_prob[row];
            r = below > -kNegligible ? expf(float(below)) : 0.f;
            if (r < least) {
                dropped =
                        (unsigned long long)(double(r) * w * totals.dropped_unit);
                r = 0;
            }
        }
        r *= w;
        kept = r > 0;
        lists.r[p] = r;
    }
    const int n = __syncthreads_count(kept);
    if (threadIdx.x == 0 && n) {
        atomicAdd(totals.kept, (unsigned long long)n);
    }
    if (dropped) {
        atomicAdd(totals.dropped, dropped);
    }
}

unsigned blocks_for(int64_t n) {
    return unsigned(std::max<int64_t>((n + kThreads - 1) / kThreads, 1));
}

} // namespace

void start_rows(const RowTotals& rows, int64_t count, cudaStream_t stream) {
    start_kernel<<<blocks_for(count), kThreads, 0, stream>>>(rows, count);
    check_launch("start_kernel");
}

void set_least(
        const RowTotals& rows,
        int64_t count,
        float reach,
        cudaStream_t stream) {
    least_kernel<<<blocks_for(count + kBoundRows), kThreads, 0, stream>>>(
            rows, count, reach);
    check_launch("least_kernel");
}

void find_best(
        const PairLists& lists,
        uint32_t pairs,
        const RowTotals& rows,
        cudaStream_t stream) {
    const unsigned grid = blocks_for(pairs);
    top_kernel<<<grid, kThreads, 0, stream>>>(lists, pairs, rows);
    check_launch("top_kernel");
    winner_kernel<<<grid, kThreads, 0, stream>>>(lists, pairs, rows);
    check_launch("winner_kernel");
}

void add_objective(const PassTotals& totals, int n, cudaStream_t stream) {
    collect_kernel<<<1, kThreads, 0, stream>>>(
            totals.partial, n, totals.objective);
    check_launch("collect_kernel");
}

void responsibilities(
        const PairLists& lists,
        uint32_t pairs,
        int64_t first,
        int64_t count,
        const float* weight,
        float least,
        bool hard,
        const RowTotals& rows,
        const PassTotals& totals,
        cudaStream_t stream) {
    const unsigned grid = blocks_for(pairs);
    if (hard) {
        find_best(lists, pairs, rows, stream);
    } else {
        top_kernel<<<grid, kThreads, 0, stream>>>(lists, pairs, rows);
        check_launch("top_kernel");
        sum_kernel<<<grid, kThreads, 0, stream>>>(lists, pairs, rows);
        check_launch("sum_kernel");
    }
    const int blocks =
            int(std::min<unsigned>(blocks_for(count), PassTotals::kPartials));
    finish_kernel<<<blocks, kThreads, 0, stream>>>(
            rows, first, first + count, weight, hard, totals.partial);
    check_launch("finish_kernel");
    add_objective(totals, blocks, stream);
    responsibility_kernel<<<grid, kThreads, 0, stream>>>(
            lists, pairs, weight, least, hard, rows, totals);
    check_launch("responsibility_kernel");
}

} // namespace gmm::cuda::full
