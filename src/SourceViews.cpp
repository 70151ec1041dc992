#include <algorithm>
#include <cstring>
#include <utility>

#include "DeviceSource.h"
#include "Error.h"
#include "VectorSource.h"

namespace gmm {

namespace {

/// Rows that are read together with those between them, at most so many for
/// each one that is wanted: one large read takes less time than many small
/// ones.
constexpr size_t kReadThrough = 8;

/// A number that looks like chance (splitmix64: Steele, Lea and Flood 2014).
uint64_t scrambled(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

struct SampleSource : VectorSource {
    const VectorSource& whole;
    const uint64_t seed;

    SampleSource(const VectorSource& whole, size_t count, uint64_t seed)
            : whole(whole), seed(seed) {
        n = count;
        d = whole.d;
        type = whole.type;
    }

    /// Row i is one of [first(i), first(i + 1)).
    size_t first(size_t i) const {
        const size_t each = whole.n / n, rest = whole.n % n;
        return i * each + i * rest / n;
    }

    size_t row(size_t i) const {
        const size_t begin = first(i), end = first(i + 1);
        return begin + scrambled(seed + i) % (end - begin);
    }

    size_t given_row(size_t i) const override {
        return whole.given_row(row(i));
    }

    Rows rows(size_t begin, size_t count, std::vector<std::byte>& scratch)
            const override {
        check_range(begin, count);
        const size_t stride = d * element_size(type);
        std::vector<std::byte> some;
        if (scratch.size() < count * stride) {
            scratch.resize(count * stride);
        }
        if (const auto* there = dynamic_cast<const DeviceSource*>(&whole)) {
            std::vector<size_t> ids(count);
            for (size_t i = 0; i < count; i++) {
                ids[i] = row(begin + i);
            }
            there->gather(ids.data(), count, scratch.data());
            return {scratch.data(), type, count, d, stride};
        }
        const bool through = whole.n / n < kReadThrough;
        const size_t portion = through ? 1024 : 1;
        for (size_t i = 0; i < count; i += portion) {
            const size_t end = std::min(count, i + portion);
            const size_t from = row(begin + i);
            const Rows read =
                    whole.rows(from, row(begin + end - 1) + 1 - from, some);
            for (size_t j = i; j < end; j++) {
                std::memcpy(
                        scratch.data() + j * stride,
                        static_cast<const std::byte*>(read.data) +
                                (row(begin + j) - from) * read.stride,
                        stride);
            }
        }
        return {scratch.data(), type, count, d, stride};
    }
};

struct MappedSource : VectorSource {
    const VectorSource& source;
    const MapRows map;

    MappedSource(const VectorSource& source, size_t d_out, MapRows map)
            : source(source), map(std::move(map)) {
        n = source.n;
        d = d_out;
    }

    size_t given_row(size_t i) const override {
        return source.given_row(i);
    }

    Rows rows(size_t begin, size_t count, std::vector<std::byte>& scratch)
            const override {
        std::vector<float> x(count * source.d);
        source.rows(begin, count, scratch).to_float(x.data());
        const size_t stride = d * sizeof(float);
        if (scratch.size() < count * stride) {
            scratch.resize(count * stride);
        }
        map(count, x.data(), reinterpret_cast<float*>(scratch.data()));
        return {scratch.data(), type, count, d, stride};
    }
};

} // namespace

std::unique_ptr<VectorSource> sample_source(
        const VectorSource& source, size_t count, uint64_t seed) {
    if (count == 0 || count > source.n) {
        throw_invalid("count = %zu, expected 1 to n = %zu", count, source.n);
    }
    return std::make_unique<SampleSource>(source, count, seed);
}

std::unique_ptr<VectorSource> mapped_source(
        const VectorSource& source, size_t d, MapRows map) {
    if (d == 0) {
        throw_invalid("d = 0, expected at least one dimension");
    }
    if (!map) {
        throw_invalid("map is empty, expected a function");
    }
    return std::make_unique<MappedSource>(source, d, std::move(map));
}

} // namespace gmm
