#include <algorithm>

#include "cuda/engine/Check.h"
#include "cuda/full/Full.h"

namespace gmm::cuda::full {

namespace {

constexpr int kThreads = 256;

/// Which rows are summed: a component's listed ones, or all there are.
struct MomentInput {
    FullRows rows;
    PairLists lists;     ///< row == nullptr: all rows, as many as `count`
    const float* weight; ///< then; nullptr: 1
    uint32_t count;
};

template <int T>
struct MomentShared {
    static constexpr int kRows = 1024 / T;
    double left[kRows][T], right[kRows][T];
    int32_t row[2 * kThreads];
    float r[2 * kThreads];
    int warp_counts[kThreads / 32];
};

/** A tile of T x T of one component's second moments in double, of one piece of
 * its rows: each block reads the piece's pairs, keeps those with a
 * responsibility, and adds their products 1024 / T rows at a time; four by four
 * elements a thread, and where that leaves threads, groups of them share the
 * rows. The thread that fills a column of the operand adds up its sum. */
template <int T, bool kMoments>
__global__ void __launch_bounds__(kThreads) moment_kernel(
        const MomentInput in, const MomentSums sums, int tiles, int pieces) {
    using Shared = MomentShared<T>;
    constexpr int kRows = Shared::kRows;
    constexpr int kGroupThreads = T * T / 16;
    constexpr int kGroups = kThreads / kGroupThreads;
    constexpr int kFillers = kThreads / T; ///< threads that share a column
    __shared__ Shared s;
    const int c = blockIdx.x / tiles, piece = blockIdx.y;
    // Tiles of the lower triangle, row by row.
    int i = 0, j = blockIdx.x % tiles;
    if (kMoments) {
        while (j > i) {
            j -= ++i;
        }
    } else {
        i = j;
    }
    const bool diagonal = i == j;
    const bool listed = in.lists.row;
    const uint32_t all_begin =
            listed ? in.lists.begin[int64_t(c) * in.lists.segments] : 0;
    const uint32_t all = listed
            ? in.lists.begin[int64_t(c + 1) * in.lists.segments] - all_begin
            : in.count;
    const uint32_t begin = all_begin + uint32_t(uint64_t(all) * piece / pieces);
    const uint32_t end =
            all_begin + uint32_t(uint64_t(all) * (piece + 1) / pieces);

    const int column = threadIdx.x % T, filler = threadIdx.x / T;
    const int group = threadIdx.x / kGroupThreads;
    const int x = threadIdx.x % kGroupThreads % (T / 4) * 4;
    const int y = threadIdx.x % kGroupThreads / (T / 4) * 4;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const bool left_inside = i * T + column < sums.d;
    const bool right_inside = j * T + column < sums.d;
    double sum[4][4] = {};
    double n = 0, sum_x = 0, sum_squares = 0;

    auto add = [&](int from, int count) {
        __syncthreads();
        for (int k = filler; k < kRows; k += kFillers) {
            const bool inside = k < count;
            const double r = inside ? s.r[from + k] : 0.f;
            const float* const row = in.rows.y +
                    int64_t(inside ? s.row[from + k] : 0) * in.rows.pitch;
            const double left =
                    inside && left_inside ? row[i * T + column] : 0.f;
            const double weighted = r * left;
            n += r;
            sum_x += weighted;
            if (kMoments) {
                s.left[k][column] = weighted;
                s.right[k][column] = diagonal    ? left
                        : inside && right_inside ? row[j * T + column]
                                                 : 0.f;
            } else {
                sum_squares += weighted * left;
            }
        }
        __syncthreads();
        if (kMoments) {
            for (int k = group; k < kRows; k += kGroups) {
                double a[4], b[4];
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    a[e] = s.left[k][y + e];
                    b[e] = s.right[k][x + e];
                }
#pragma unroll
                for (int e = 0; e < 4; e++) {
#pragma unroll
                    for (int f = 0; f < 4; f++) {
                        sum[e][f] += a[e] * b[f];
                    }
                }
            }
        }
    };

    int queued = 0;
    for (uint32_t at = begin; at < end; at += kThreads) {
        const uint32_t p = at + threadIdx.x;
        float r = 0;
        int32_t row = 0;
        if (p < end) {
            r = listed ? in.lists.r[p] : in.weight ? in.weight[p] : 1.f;
            row = listed ? in.lists.row[p] : int32_t(p);
        }
        const uint32_t found = __ballot_sync(0xffffffffu, r > 0);
        if (lane == 0) {
            s.warp_counts[warp] = __popc(found);
        }
        __syncthreads();
        int to = queued;
        for (int w = 0; w < kThreads / 32; w++) {
            to += w < warp ? s.warp_counts[w] : 0;
            queued += s.warp_counts[w];
        }
        if (r > 0) {
            to += __popc(found & ((1u << lane) - 1));
            s.row[to] = row;
            s.r[to] = r;
        }
        int from = 0;
        for (; queued - from >= kRows; from += kRows) {
            add(from, kRows);
        }
        if (from > 0) { // what is left is less than where it came from
            __syncthreads();
            if (int(threadIdx.x) < queued - from) {
                s.row[threadIdx.x] = s.row[from + threadIdx.x];
                s.r[threadIdx.x] = s.r[from + threadIdx.x];
            }
            queued -= from;
        }
        __syncthreads();
    }
    if (queued > 0) {
        add(0, queued);
    }

    double* const out = sums.sums + size_t(piece) * sums.size();
    const size_t k = sums.k, d = sums.d;
    double* const x2 = out + k * (1 + d) + c * sums.per();
    auto across_fillers = [&](double value) {
        __syncthreads();
        s.left[0][threadIdx.x] = value; // kRows * T >= kThreads
        __syncthreads();
        double total = 0;
        if (filler == 0) {
            for (int f = 0; f < kFillers; f++) {
                total += s.left[0][f * T + column];
            }
        }
        return total;
    };
    if (diagonal) {
        const double total_n = across_fillers(n);
        const double total_x = across_fillers(sum_x);
        const double total_squares = kMoments ? 0 : across_fillers(sum_squares);
        if (filler == 0 && left_inside) {
            if (i == 0 && column == 0) {
                out[c] += total_n;
            }
            out[k + c * d + i * T + column] += total_x;
            if (!kMoments) {
                x2[i * T + column] += total_squares;
            }
        }
    }
    if (!kMoments) {
        return;
    }
    if (kGroups > 1) { // T <= 32: the tile fits where operands were
        for (int turn = 0; turn < kGroups; turn++) {
            __syncthreads();
            if (group == turn) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
#pragma unroll
                    for (int f = 0; f < 4; f++) {
                        double& total = s.left[0][(y + e) * T + x + f];
                        sum[e][f] += turn > 0 ? total : 0.;
                        total = sum[e][f];
                    }
                }
            }
        }
        if (group != kGroups - 1) {
            return;
        }
    }
#pragma unroll
    for (int e = 0; e < 4; e++) {
#pragma unroll
        for (int f = 0; f < 4; f++) {
            const size_t to_row = i * T + y + e, to_column = j * T + x + f;
            if (to_row < d && to_column <= to_row) {
                x2[to_row * (to_row + 1) / 2 + to_column] += sum[e][f];
            }
        }
    }
}

__global__ void __launch_bounds__(kThreads)
        add_pieces_kernel(const double* from, int pieces, const MomentSums to) {
    const size_t size = to.size();
    const size_t i = size_t(blockIdx.x) * kThreads + threadIdx.x;
    if (i < size) {
        double sum = 0;
        for (int piece = 0; piece < pieces; piece++) {
            sum += from[piece * size + i];
        }
        to.sums[i] += sum;
    }
}

int tile_size(int d) {
    return d <= 16 ? 16 : d <= 32 ? 32 : 64;
}

int tile_count(int d, bool moments) {
    const int side = (d + tile_size(d) - 1) / tile_size(d);
    return moments ? side * (side + 1) / 2 : side;
}

template <int T>
void launch(
        const MomentInput& in,
        const MomentSums& sums,
        int pieces,
        cudaStream_t stream) {
    const int tiles = tile_count(sums.d, sums.moments);
    const dim3 grid(unsigned(tiles * sums.k), unsigned(pieces));
    if (sums.moments) {
        moment_kernel<T, true>
                <<<grid, kThreads, 0, stream>>>(in, sums, tiles, pieces);
    } else {
        moment_kernel<T, false>
                <<<grid, kThreads, 0, stream>>>(in, sums, tiles, pieces);
    }
    check_launch("moment_kernel");
}

void add(
        const MomentInput& in,
        const MomentSums& sums,
        int pieces,
        double* scratch,
        cudaStream_t stream) {
    MomentSums to = sums;
    if (pieces > 1) {
        to.sums = scratch;
        check(cudaMemsetAsync(
                      scratch,
                      0,
                      pieces * sums.size() * sizeof(double),
                      stream),
              "clearing");
    }
    switch (tile_size(sums.d)) {
        case 16:
            launch<16>(in, to, pieces, stream);
            break;
        case 32:
            launch<32>(in, to, pieces, stream);
            break;
        default:
            launch<64>(in, to, pieces, stream);
    }
    if (pieces > 1) {
        add_pieces(scratch, pieces, sums, stream);
    }
}

} // namespace

int moment_pieces(int k, int d, bool moments) {
    constexpr int kEnough = 132 * 8;
    const int64_t blocks = int64_t(k) * tile_count(d, moments);
    return int(std::clamp<int64_t>((kEnough + blocks - 1) / blocks, 1, 1024));
}

void add_pieces(
        const double* from,
        int pieces,
        const MomentSums& sums,
        cudaStream_t stream) {
    add_pieces_kernel<<<
            unsigned((sums.size() + kThreads - 1) / kThreads),
            kThreads,
            0,
            stream>>>(from, pieces, sums);
    check_launch("add_pieces_kernel");
}

void add_moments(
        const FullRows& rows,
        const PairLists& lists,
        const MomentSums& sums,
        int pieces,
        double* scratch,
        cudaStream_t stream) {
    add({rows, lists, nullptr, 0}, sums, pieces, scratch, stream);
}

void add_all_moments(
        const FullRows& rows,
        int64_t count,
        const float* weight,
        const MomentSums& sums,
        int pieces,
        double* scratch,
        cudaStream_t stream) {
    add({rows, PairLists{}, weight, uint32_t(count)},
        sums,
        pieces,
        scratch,
        stream);
}

} // namespace gmm::cuda::full
