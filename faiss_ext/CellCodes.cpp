#include "faiss_ext/CellCodes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include <faiss/impl/FaissAssert.h>

#include "InnerProducts.h"
#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/impl/simd.h"

namespace faiss_ext {

namespace {

/// `error` for residuals of normal values, by bits.
float normal_error(int bits) {
    return bits == 1 ? 0.30f : bits == 2 ? 0.37f : 0.33f;
}

/// Columns of four bits whose tables' entries add up in 16 bits.
constexpr size_t kMostColumns = 65535;

/// The bytes of a group's columns within a record: of columns 0 and 2, then of
/// 1 and 3, the higher column in the high half.
template <int bits>
void pack(size_t groups, const uint8_t* level, uint8_t* record) {
    constexpr size_t dims = 4 / bits;
    for (size_t b = 0; b < 2 * groups; b++) {
        const uint8_t* low = level + (b / 2 * 4 + b % 2) * dims;
        unsigned byte = 0;
        for (size_t t = 0; t < dims; t++) {
            byte |= unsigned(low[t]) << (t * bits);
            byte |= unsigned(low[2 * dims + t]) << (t * bits + 4);
        }
        record[b] = uint8_t(byte);
    }
}

} // namespace

void CellCodes::check_bits(int bits) {
    FAISS_THROW_IF_NOT_FMT(
            bits == 1 || bits == 2 || bits == 4,
            "code_bits = %d, expected 1, 2 or 4",
            bits);
}

bool CellCodes::fits(size_t d, int bits) {
    return (d * bits + 15) / 16 * 4 <= kMostColumns;
}

void CellCodes::check_fits(size_t d, int bits) {
    check_bits(bits);
    FAISS_THROW_IF_NOT_FMT(
            fits(d, bits),
            "d = %zu with code_bits = %d, expected at most %zu dimensions",
            d,
            bits,
            kMostColumns / 4 * 16 / bits);
}

int CellCodes::default_bits(size_t d) {
    return d < 32 ? 4 : d < 256 ? 2 : 1;
}

void CellCodes::init(
        size_t nlist,
        size_t d,
        int bits,
        const float* means,
        bool similarity_in) {
    check_fits(d, bits);
    CellCodes out;
    out.similarity = similarity_in;
    out.shape.d = d;
    out.shape.bits = bits;
    out.shape.groups = (d * bits + 15) / 16;
    out.rotation = Rotation(d);
    out.centre.assign(d, 0);
    if (!similarity_in) {
        out.centre = centre_of_means(nlist, d, means);
    }
    out.rotated_means.resize(nlist * d);
    out.rotation.apply(
            nlist, means, out.centre.data(), 1, out.rotated_means.data());
    const std::vector<float> centred = about(nlist, d, means, out.centre);
    out.packed_means =
            std::make_shared<gmm::PackedMeans>(nlist, d, centred.data());
    out.mean_norms.assign(nlist, 0);
    if (!similarity_in) {
        for (size_t i = 0; i < nlist; i++) {
            const float* m = &centred[i * d];
            out.mean_norms[i] = best_code_kernels().inner_product(m, m, d);
        }
    }
    out.blocks.resize(nlist);
    out.error = normal_error(bits);
    *this = std::move(out);
}

struct CellCodes::Room {
    // all at once: an update of one vector would notice
    std::vector<float> memory;
    float *rotated, *room;
    uint8_t* level;
    About about[kEncodedTogether];

    Room(const CodeShape& shape, size_t n)
            : memory(n * (3 * shape.d + (pitch(shape) + 3) / 4)),
              rotated(memory.data()), room(rotated + n * shape.d),
              level(reinterpret_cast<uint8_t*>(room + 2 * n * shape.d)) {}

    static size_t pitch(const CodeShape& shape) {
        return shape.groups * 16 / shape.bits;
    }
};

double CellCodes::encode_rotated(
        size_t n, const float* norms, Room& room, uint8_t* out) const {
    const size_t d = shape.d, pitch = Room::pitch(shape);
    const float *own[kEncodedTogether], *partner[kEncodedTogether];
    float a[kEncodedTogether];
    for (size_t i = 0; i < n; i++) {
        own[i] = &rotated_means[room.about[i].list * d];
        partner[i] = &rotated_means[room.about[i].partner * d];
        a[i] = room.about[i].a;
    }
    CodeProducts products[kEncodedTogether];
    best_code_kernels().encode(
            {d,
             shape.bits,
             n,
             room.rotated,
             own,
             partner,
             a,
             room.room,
             room.level,
             pitch,
             products});
    const auto pack_level = shape.bits == 1 ? pack<1>
            : shape.bits == 2               ? pack<2>
                                            : pack<4>;
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const CodeProducts& p = products[i];
        const float scale = p.ro > 0 ? p.rr / p.ro : 0;
        const float norm = norms ? norms[i] : 1;
        float terms[2] = {norm, -norm * scale};
        if (!similarity) {
            terms[0] = p.rr + 2 * scale * p.mo;
            terms[1] = -2 * scale;
        }
        if (p.rr > 0) { // |o|^2 sin^2 of its angle with r, by dimension
            sum += std::max(p.oo - double(p.ro) * p.ro / p.rr, 0.0) /
                    std::max<double>(1, d - 1.0);
        }
        uint8_t* record = out + i * shape.entry_bytes();
        pack_level(shape.groups, room.level + i * pitch, record);
        memcpy(record + shape.groups * 2, terms, sizeof(terms));
    }
    return sum;
}

double CellCodes::encode(
        size_t list,
        float a,
        const int32_t* partners,
        size_t n,
        const float* x,
        const uint32_t* rows,
        const float* norms,
        const uint16_t* cell,
        uint8_t* out) const {
    const size_t d = shape.d, together = std::min(kEncodedTogether, n);
    Room room(shape, together);
    double sum = 0;
    for (size_t begin = 0; begin < n; begin += together) {
        const size_t m = std::min(together, n - begin);
        const size_t next_end = std::min(n, begin + 2 * m);
        for (size_t i = begin + m; rows && i < next_end; i++) {
            prefetch_bytes(x + rows[i] * d, d * sizeof(float));
        }
        rotation.apply(
                m,
                rows ? x : x + begin * d,
                centre.data(),
                1,
                room.rotated,
                rows ? rows + begin : nullptr);
        for (size_t i = 0; i < m; i++) {
            room.about[i] = {list, size_t(partners[cell[begin + i]]), a};
        }
        sum += encode_rotated(
                m,
                norms ? norms + begin : nullptr,
                room,
                out + begin * shape.entry_bytes());
    }
    return sum;
}

void CellCodes::encode_centred(
        size_t n,
        const float* x,
        const float* norms,
        const About* about,
        uint8_t* out) const {
    const size_t together = std::min(kEncodedTogether, n);
    Room room(shape, together);
    for (size_t begin = 0; begin < n; begin += together) {
        const size_t m = std::min(together, n - begin);
        rotation.apply(m, x + begin * shape.d, nullptr, 1, room.rotated);
        std::copy_n(about + begin, m, room.about);
        encode_rotated(
                m,
                norms ? norms + begin : nullptr,
                room,
                out + begin * shape.entry_bytes());
    }
}

void CellCodes::set_error(const std::vector<double>& squared, size_t n) {
    if (n > 0) {
        const double measured = std::sqrt(
                std::accumulate(squared.begin(), squared.end(), 0.0) / n);
        // Entries that lie on means say nothing of what comes later.
        error = std::max(float(measured), normal_error(shape.bits) / 2);
    }
}

void CellCodes::decode(
        size_t list,
        float a,
        size_t partner,
        const float* means,
        const uint8_t* record,
        float* out) const {
    const size_t d = shape.d, dims = 4 / shape.bits;
    const unsigned top = (1u << shape.bits) - 1;
    float terms[2];
    memcpy(terms, record + shape.groups * 2, sizeof(terms));
    std::vector<float> o(d);
    double oo = 0;
    for (size_t j = 0; j < d; j++) {
        const size_t column = j / dims;
        const uint8_t byte = record[column / 4 * 2 + (column & 1)];
        const unsigned nibble = column & 2 ? byte >> 4 : byte & 15;
        o[j] = (nibble >> (j % dims * shape.bits) & top) - 0.5f * top;
        oo += o[j] * o[j];
    }
    // S: -B / 2, or -B / A
    const float scale = !similarity ? -0.5f * terms[1]
            : terms[0] > 0          ? -terms[1] / terms[0]
                                    : 0;
    const double beside = double(error) * error * (d - 1.0);
    const float share = float(scale * std::max(1 - beside / oo, 0.0));
    for (float& v : o) {
        v *= share;
    }
    rotation.apply_inverse(1, o.data(), out);
    const float* own = means + list * d;
    const float* other = means + partner * d;
    for (size_t j = 0; j < d; j++) {
        out[j] += own[j] + a * (other[j] - own[j]);
        out[j] *= similarity ? terms[0] : 1;
    }
}

void CellCodes::resize(size_t list, size_t n) {
    const size_t n_blocks = (n + kBlockEntries - 1) / kBlockEntries;
    blocks[list].resize(n_blocks * shape.block_bytes());
}

namespace {

template <class Byte>
struct Place {
    Byte* columns; ///< every 16th byte
    Byte* terms;   ///< A; B is 16 floats behind it
};

template <class Byte>
Place<Byte> place(const CodeShape& shape, Byte* blocks, size_t entry) {
    Byte* block = blocks + entry / kBlockEntries * shape.block_bytes();
    const size_t lane = entry % kBlockEntries;
    return {block + lane, block + shape.groups * 32 + lane * sizeof(float)};
}

constexpr size_t kTermStride = kBlockEntries * sizeof(float);

} // namespace

void CellCodes::set(size_t list, size_t entry, const uint8_t* record) noexcept {
    const auto to = place(shape, blocks[list].data(), entry);
    const size_t bytes = shape.groups * 2;
    for (size_t b = 0; b < bytes; b++) {
        to.columns[b * kBlockEntries] = record[b];
    }
    memcpy(to.terms, record + bytes, sizeof(float));
    memcpy(to.terms + kTermStride,
           record + bytes + sizeof(float),
           sizeof(float));
}

void CellCodes::get(size_t list, size_t entry, uint8_t* record) const noexcept {
    const auto from = place(shape, blocks[list].data(), entry);
    const size_t bytes = shape.groups * 2;
    for (size_t b = 0; b < bytes; b++) {
        record[b] = from.columns[b * kBlockEntries];
    }
    memcpy(record + bytes, from.terms, sizeof(float));
    memcpy(record + bytes + sizeof(float),
           from.terms + kTermStride,
           sizeof(float));
}

void CellCodes::prefetch(size_t list, size_t entry) const noexcept {
    const uint8_t* block =
            blocks[list].data() + entry / kBlockEntries * shape.block_bytes();
    for (size_t b = 0; b < shape.block_bytes(); b += 64) {
        __builtin_prefetch(block + b, 1);
    }
}

void CellCodes::move(size_t list, size_t from, size_t to) noexcept {
    const auto source = place(shape, blocks[list].data(), from);
    const auto target = place(shape, blocks[list].data(), to);
    for (size_t b = 0; b < shape.groups * 2; b++) {
        target.columns[b * kBlockEntries] = source.columns[b * kBlockEntries];
    }
    memcpy(target.terms, source.terms, sizeof(float));
    memcpy(target.terms + kTermStride,
           source.terms + kTermStride,
           sizeof(float));
}

namespace {

/// One byte of n neighbouring lanes, in each of some columns.
template <size_t n>
void move_lanes(size_t columns, const uint8_t* from, uint8_t* to, size_t size) {
    for (size_t b = 0; b < columns; b++) {
        const uint8_t* const source = from + b * kBlockEntries;
        uint8_t* const target = to + b * kBlockEntries;
        uint8_t first[n], last[n]; // which overlap
        memcpy(first, source, n);
        memcpy(last, source + size - n, n);
        memcpy(target, first, n);
        memcpy(target + size - n, last, n);
    }
}

} // namespace

void CellCodes::move_run(
        size_t list, size_t from, size_t n, size_t to) noexcept {
    const size_t columns = shape.groups * 2;
    for (size_t size; n > 0; from += size, to += size, n -= size) {
        // as many as lie in one block, here and there
        size = std::min(
                {n,
                 kBlockEntries - from % kBlockEntries,
                 kBlockEntries - to % kBlockEntries});
        const auto source = place(shape, blocks[list].data(), from);
        const auto target = place(shape, blocks[list].data(), to);
        const auto move = size == kBlockEntries ? move_lanes<16>
                : size >= 8                     ? move_lanes<8>
                : size >= 4                     ? move_lanes<4>
                : size >= 2                     ? move_lanes<2>
                                                : move_lanes<1>;
        move(columns, source.columns, target.columns, size);
        for (size_t t = 0; t < 2; t++) {
            memcpy(target.terms + t * kTermStride,
                   source.terms + t * kTermStride,
                   size * sizeof(float));
        }
    }
}

void CellCodes::clear_entries() {
    for (CodeBlocks& b : blocks) {
        b = CodeBlocks();
    }
}

} // namespace faiss_ext
