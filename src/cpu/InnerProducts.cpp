#include "../InnerProducts.h"

#include <algorithm>

namespace gmm {

PackedMeans::PackedMeans(size_t k, size_t d, const float* means)
        : k(k), d(d), lines(panels() * d) {
    for (size_t c = 0; c < k; c++) {
        Line* const panel = lines.data() + c / kLanes * d;
        for (size_t j = 0; j < d; j++) {
            panel[j].lane[c % kLanes] = means[c * d + j];
        }
    }
}

void PackedMeans::assign_transposed(
        size_t new_k, size_t new_d, const float* means, size_t stride) {
    k = new_k;
    d = new_d;
    lines.resize(panels() * d);
    for (size_t p = 0; p < panels(); p++) {
        const size_t lanes = std::min(kLanes, k - p * kLanes);
        for (size_t j = 0; j < d; j++) {
            Line& line = lines[p * d + j];
            const float* const from = means + j * stride + p * kLanes;
            if (lanes == kLanes) { // a length known to the compiler
                std::copy_n(from, kLanes, line.lane);
            } else {
                line = {};
                std::copy_n(from, lanes, line.lane);
            }
        }
    }
}

namespace {

typedef float Four __attribute__((vector_size(4 * sizeof(float))));

Four load_four(const float* x) {
    Four v;
    __builtin_memcpy(&v, x, sizeof(v));
    return v;
}

void store_four(const Four& v, float* x) {
    __builtin_memcpy(x, &v, sizeof(v));
}

/// to[j * rows + i] = from[i * d + j]: in squares of four by four, the last of
/// which overlap those before.
void transpose(size_t rows, size_t d, const float* from, float* to) {
    if (rows < 4 || d < 4) {
        for (size_t j = 0; j < d; j++) {
            for (size_t i = 0; i < rows; i++) {
                to[j * rows + i] = from[i * d + j];
            }
        }
        return;
    }
    for (size_t j4 = 0; j4 < d; j4 += 4) {
        const size_t j = std::min(j4, d - 4);
        for (size_t i4 = 0; i4 < rows; i4 += 4) {
            const size_t i = std::min(i4, rows - 4);
            const float* x = from + i * d + j;
            const Four a = load_four(x), b = load_four(x + d),
                       c = load_four(x + 2 * d), e = load_four(x + 3 * d);
            const Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5),
                       ce = __builtin_shufflevector(c, e, 0, 4, 1, 5),
                       ab2 = __builtin_shufflevector(a, b, 2, 6, 3, 7),
                       ce2 = __builtin_shufflevector(c, e, 2, 6, 3, 7);
            float* y = to + j * rows + i;
            store_four(__builtin_shufflevector(ab, ce, 0, 1, 4, 5), y);
            store_four(__builtin_shufflevector(ab, ce, 2, 3, 6, 7), y + rows);
            store_four(
                    __builtin_shufflevector(ab2, ce2, 0, 1, 4, 5),
                    y + 2 * rows);
            store_four(
                    __builtin_shufflevector(ab2, ce2, 2, 3, 6, 7),
                    y + 3 * rows);
        }
    }
}

/// Queries in the order in which tiles of rows read them.
struct PackedQueries {
    const float* packed;
    size_t n;
    size_t d;
    size_t tiles;

    PackedQueries(size_t n, size_t d, const float* q, size_t most_rows)
            : packed(q), n(n), d(d), tiles((n + most_rows - 1) / most_rows) {
        if (n == 1) {
            return; // packed as it is
        }
        // Kept by the thread: memory that is given back after each call, as
        // an allocator may be told to, takes time to have again.
        static thread_local std::vector<float> room;
        if (room.size() < n * d) {
            room.resize(n * d);
        }
        for (size_t t = 0; t < tiles; t++) {
            transpose(
                    end(t) - begin(t),
                    d,
                    q + begin(t) * d,
                    room.data() + begin(t) * d);
        }
        packed = room.data();
    }

    // Tiles of nearly the same number of rows: a last one of few would cost
    // as much as a full one.
    size_t begin(size_t t) const {
        return n * t / tiles;
    }
    size_t end(size_t t) const {
        return begin(t + 1);
    }
    const float* tile(size_t t) const {
        return packed + begin(t) * d;
    }
};

// What goes through all panels: tile(rows, queries, first panel, panels, out,
// stride) is one call of a kernel.
template <class Tile>
void last_panel(
        const PackedMeans& means,
        const PackedQueries& queries,
        float* out,
        size_t stride,
        size_t most_rows,
        const Tile& tile) {
    const size_t whole = means.k / kLanes, left = means.k % kLanes;
    std::vector<float> room(most_rows * kLanes);
    for (size_t t = 0; left > 0 && t < queries.tiles; t++) {
        const size_t begin = queries.begin(t), rows = queries.end(t) - begin;
        tile(rows, queries.tile(t), whole, 1, room.data(), kLanes);
        for (size_t i = 0; i < rows; i++) {
            std::copy_n(
                    room.data() + i * kLanes,
                    left,
                    out + (begin + i) * stride + whole * kLanes);
        }
    }
}

template <class Tile>
void all_panels(
        const PackedMeans& means,
        size_t n,
        const float* q,
        float* out,
        size_t stride,
        size_t most_rows,
        const Tile& tile) {
    // So many that the packed queries stay in the second-level cache.
    const size_t most = std::max<size_t>(
            most_rows, (size_t(1) << 16) / std::max<size_t>(1, means.d));
    const size_t whole = means.k / kLanes;
    for (; n > 0;) {
        const size_t count = std::min(n, most);
        const PackedQueries queries(count, means.d, q, most_rows);
        // Two panels serve all tiles before the next two come; a single tile
        // has all of them at once.
        const size_t group = queries.tiles > 1 ? 2 : std::max<size_t>(1, whole);
        for (size_t p = 0; p < whole; p += group) {
            for (size_t t = 0; t < queries.tiles; t++) {
                const size_t begin = queries.begin(t);
                tile(queries.end(t) - begin,
                     queries.tile(t),
                     p,
                     std::min(group, whole - p),
                     out + begin * stride + p * kLanes,
                     stride);
            }
        }
        last_panel(means, queries, out, stride, most_rows, tile);
        n -= count;
        q += count * means.d;
        out += count * stride;
    }
}

} // namespace

void inner_products(
        const PackedMeans& means,
        size_t n,
        const float* q,
        float* out,
        size_t stride,
        const Kernels& kernel) {
    all_panels(
            means,
            n,
            q,
            out,
            stride,
            kernel.product_rows,
            [&](size_t rows,
                const float* tile,
                size_t p,
                size_t panels,
                float* to,
                size_t pitch) {
                kernel.product(
                        rows, means.d, tile, panels, means.panel(p), to, pitch);
            });
}

void exponents(
        const PackedMeans& scales,
        const PackedMeans& shifts,
        size_t n,
        const float* q,
        float* out,
        size_t stride,
        const Kernels& kernel) {
    all_panels(
            scales,
            n,
            q,
            out,
            stride,
            kernel.product_rows,
            [&](size_t rows,
                const float* tile,
                size_t p,
                size_t panels,
                float* to,
                size_t pitch) {
                kernel.exponents(
                        rows,
                        scales.d,
                        tile,
                        panels,
                        scales.panel(p),
                        shifts.panel(p),
                        to,
                        pitch);
            });
}

} // namespace gmm
