#include "cuda/engine/Check.h"
#include "cuda/full/Full.h"

namespace gmm::cuda::full {

namespace {

__global__ void __launch_bounds__(256) best_kernel(
        const PairLists lists,
        const RowTotals rows,
        int64_t first,
        int64_t count,
        int32_t* components) {
    const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (i >= count) {
        return;
    }
    const uint32_t pair = rows.winner[first + i];
    int low = 0, high = lists.k;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (lists.begin[int64_t(middle) * lists.segments] <= pair ? low : high) =
                middle;
    }
    components[first + i] = low;
}

/// One thread a row: the largest of all, m times; equal ones by their numbers.
__global__ void __launch_bounds__(256) select_kernel(
        const PairLists lists,
        int64_t first,
        int64_t count,
        int m,
        int32_t* components) {
    const int64_t i = int64_t(blockIdx.x) * 256 + threadIdx.x;
    if (i >= count) {
        return;
    }
    const int64_t apart = lists.begin[lists.segments]; // rows of a component
    double before = INFINITY;
    int before_c = -1;
    for (int r = 0; r < m; r++) {
        double best = -INFINITY;
        int best_c = -1;
        for (int c = 0; c < lists.k; c++) {
            const double v = lists.value[c * apart + i];
            const bool left = v < before || (v == before && c > before_c);
            if (left && (best_c < 0 || v > best)) {
                best = v;
                best_c = c;
            }
        }
        // Values that are not numbers have no order: any that is left.
        best_c = max(best_c, 0);
        components[(first + i) * m + r] = best_c;
        before = best;
        before_c = best_c;
    }
}

/// One warp a row and component.
__global__ void __launch_bounds__(256) describe_kernel(
        const FullModelView model,
        const FullRows rows,
        int64_t pairs,
        int m,
        const int32_t* __restrict__ components,
        float* distances,
        double* log_joint) {
    const int lane = threadIdx.x % 32;
    const int64_t p = int64_t(blockIdx.x) * 8 + threadIdx.x / 32;
    if (p >= pairs) {
        return;
    }
    const int c = components[p];
    const float* const y = rows.y + p / m * rows.pitch;
    const float* const mean = model.means + int64_t(c) * model.pitch;
    const float* const factor = model.factors + c * model.factor_stride;
    double distance = 0, square = 0;
    for (int j0 = 0; j0 < model.d; j0 += 32) {
        const int j = j0 + lane;
        double sum = 0;
        for (int i = 0; i < min(j0 + 32, model.d); i++) {
            if (i <= j && j < model.d) {
                sum += (double(y[i]) - mean[i]) *
                        factor[int64_t(i) * model.pitch + j];
            }
        }
        square += sum * sum;
        if (j < model.d) {
            const double t = double(y[j]) - mean[j];
            distance += t * t;
        }
    }
    for (int step = 16; step; step /= 2) {
        distance += __shfl_xor_sync(0xffffffffu, distance, step);
        square += __shfl_xor_sync(0xffffffffu, square, step);
    }
    if (lane == 0) {
        distances[p] = float(distance);
        log_joint[p] = model.terms[c].log_norm - 0.5 * square;
    }
}

unsigned blocks_for(int64_t n, int each) {
    return unsigned((n + each - 1) / each);
}

} // namespace

void best_components(
        const PairLists& lists,
        const RowTotals& rows,
        int64_t first,
        int64_t count,
        int32_t* components,
        cudaStream_t stream) {
    best_kernel<<<blocks_for(count, 256), 256, 0, stream>>>(
            lists, rows, first, count, components);
    check_launch("best_kernel");
}

void select_components(
        const PairLists& lists,
        int64_t first,
        int64_t count,
        int m,
        int32_t* components,
        cudaStream_t stream) {
    select_kernel<<<blocks_for(count, 256), 256, 0, stream>>>(
            lists, first, count, m, components);
    check_launch("select_kernel");
}

void describe_components(
        const FullModelView& model,
        const FullRows& rows,
        int64_t count,
        int m,
        const int32_t* components,
        float* distances,
        double* log_joint,
        cudaStream_t stream) {
    describe_kernel<<<blocks_for(count * m, 8), 256, 0, stream>>>(
            model, rows, count * m, m, components, distances, log_joint);
    check_launch("describe_kernel");
}

} // namespace gmm::cuda::full
