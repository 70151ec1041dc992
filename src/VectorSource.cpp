#include "VectorSource.h"

#include <bit>
#include <cstring>
#include <mutex>

#include "DeviceSource.h"
#include "Error.h"

namespace gmm {

size_t element_size(ElementType type) {
    switch (type) {
        case ElementType::f32:
            return 4;
        case ElementType::f16:
            return 2;
        case ElementType::u8:
            break;
    }
    return 1;
}

// IEEE binary16 -> binary32. The bits below the sign are shifted into place
// and the exponent's bias corrected by a multiplication, which also
// normalises subnormal numbers; free of branches so that it vectorises.
static float half_to_float(uint16_t half) {
    const uint32_t magnitude = uint32_t(half & 0x7fffu) << 13;
    uint32_t bits =
            std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) * 0x1p112f);
    bits |= magnitude >= 0x0f800000u ? 0x7f800000u : 0u; // infinity, NaN
    return std::bit_cast<float>(bits | uint32_t(half & 0x8000u) << 16);
}

void Rows::to_float(float* out) const {
    const std::byte* row = static_cast<const std::byte*>(data);
    for (size_t i = 0; i < n; i++, row += stride, out += d) {
        switch (type) {
            case ElementType::f32:
                std::memcpy(out, row, d * sizeof(float));
                break;
            case ElementType::f16:
                for (size_t j = 0; j < d; j++) {
                    uint16_t half; // rows need not be aligned
                    std::memcpy(&half, row + 2 * j, sizeof(half));
                    out[j] = half_to_float(half);
                }
                break;
            case ElementType::u8:
                for (size_t j = 0; j < d; j++) {
                    out[j] = float(std::to_integer<uint8_t>(row[j]));
                }
                break;
        }
    }
}

static void check_shape(size_t n, size_t d) {
    if (n == 0) {
        throw_invalid("n = 0, expected at least one vector");
    }
    if (d == 0) {
        throw_invalid("d = 0, expected at least one dimension");
    }
}

void VectorSource::check_range(size_t begin, size_t count) const {
    if (begin > n || count > n - begin) {
        throw_invalid(
                "rows: begin = %zu, count = %zu, expected begin + count <= n "
                "= %zu",
                begin,
                count,
                n);
    }
}

namespace {

struct MemorySource : VectorSource {
    const std::byte* data;

    Rows rows(size_t begin, size_t count, std::vector<std::byte>&)
            const override {
        check_range(begin, count);
        const size_t stride = d * element_size(type);
        return {data + begin * stride, type, count, d, stride};
    }
};

struct CallbackSource : VectorSource {
    FillRows fill;
    mutable std::mutex one_at_a_time;

    Rows rows(size_t begin, size_t count, std::vector<std::byte>& scratch)
            const override {
        check_range(begin, count);
        const size_t stride = d * element_size(type);
        scratch.resize(count * stride);
        {
            std::lock_guard<std::mutex> lock(one_at_a_time);
            fill(begin, count, scratch.data());
        }
        return {scratch.data(), type, count, d, stride};
    }
};

} // namespace

std::unique_ptr<VectorSource> memory_source(
        const void* data, size_t n, size_t d, ElementType type) {
    check_shape(n, d);
    if (data == nullptr) {
        throw_invalid("data = nullptr, expected %zu vectors", n);
    }
    auto source = std::make_unique<MemorySource>();
    source->n = n;
    source->d = d;
    source->type = type;
    source->data = static_cast<const std::byte*>(data);
    return source;
}

std::unique_ptr<VectorSource> callback_source(
        size_t n, size_t d, ElementType type, FillRows fill) {
    check_shape(n, d);
    if (!fill) {
        throw_invalid("fill is empty, expected a function");
    }
    auto source = std::make_unique<CallbackSource>();
    source->n = n;
    source->d = d;
    source->type = type;
    source->fill = std::move(fill);
    return source;
}

void gather(
        const VectorSource& source,
        const std::vector<size_t>& ids,
        float* out) {
    check_array("out", out, ids.size());
    for (size_t i = 0; i < ids.size(); i++) {
        if (ids[i] >= source.n) {
            throw_invalid(
                    "ids[%zu] = %zu, expected less than n = %zu",
                    i,
                    ids[i],
                    source.n);
        }
    }
    std::vector<std::byte> scratch;
    if (const auto* there = dynamic_cast<const DeviceSource*>(&source)) {
        const size_t stride = source.d * element_size(source.type);
        scratch.resize(ids.size() * stride);
        there->gather(ids.data(), ids.size(), scratch.data());
        const Rows all{
                scratch.data(), source.type, ids.size(), source.d, stride};
        all.to_float(out);
        return;
    }
    for (size_t i = 0; i < ids.size(); i++) {
        source.rows(ids[i], 1, scratch).to_float(out + i * source.d);
    }
}

} // namespace gmm
