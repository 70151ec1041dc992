#include "array_source.h"

#include <cstdint>
#include <cstring>

#include "DeviceSource.h"
#include "interrupt.h"

namespace faiss_ext_python {

namespace nb = nanobind;

namespace {

/// Rows of any layout as floats.
using Convert = void (*)(
        const std::byte* data,
        size_t n,
        size_t d,
        int64_t row_bytes,
        int64_t column_bytes,
        const double* center,
        float* out);

template <class T>
void convert(
        const std::byte* data,
        size_t n,
        size_t d,
        int64_t row_bytes,
        int64_t column_bytes,
        const double* center,
        float* out) {
    for (size_t i = 0; i < n; i++) {
        const std::byte* at = data + int64_t(i) * row_bytes;
        for (size_t j = 0; j < d; j++, at += column_bytes) {
            T value;
            memcpy(&value, at, sizeof(T));
            *out++ = center ? float(double(value) - center[j]) : float(value);
        }
    }
}

Convert conversion(nb::dlpack::dtype type) {
    auto is = [&](nb::dlpack::dtype other) { return type == other; };
    if (is(nb::dtype<float>())) {
        return convert<float>;
    }
    if (is(nb::dtype<double>())) {
        return convert<double>;
    }
    if (is(nb::dtype<int8_t>())) {
        return convert<int8_t>;
    }
    if (is(nb::dtype<uint8_t>())) {
        return convert<uint8_t>;
    }
    if (is(nb::dtype<int16_t>())) {
        return convert<int16_t>;
    }
    if (is(nb::dtype<uint16_t>())) {
        return convert<uint16_t>;
    }
    if (is(nb::dtype<int32_t>())) {
        return convert<int32_t>;
    }
    if (is(nb::dtype<uint32_t>())) {
        return convert<uint32_t>;
    }
    if (is(nb::dtype<int64_t>())) {
        return convert<int64_t>;
    }
    if (is(nb::dtype<uint64_t>())) {
        return convert<uint64_t>;
    }
    throw nb::type_error(
            "x: its dtype is not one that vectors are read from (integers of "
            "8 to 64 bits, float32, float64; float16 where it is "
            "C-contiguous)");
}

bool is_half(nb::dlpack::dtype type) {
    return type.code == uint8_t(nb::dlpack::dtype_code::Float) &&
            type.bits == 16 && type.lanes == 1;
}

struct ArraySource : gmm::VectorSource {
    const std::byte* data;
    int64_t row_bytes, column_bytes;
    std::vector<double> center;
    Convert to_float = nullptr; ///< nullptr: pointed at in place

    ArraySource(const AnyMatrix& x, std::vector<double> center)
            : center(std::move(center)) {
        n = x.shape(0);
        d = x.shape(1);
        data = static_cast<const std::byte*>(x.data());
        row_bytes = x.stride(0) * int64_t(x.itemsize());
        column_bytes = x.stride(1) * int64_t(x.itemsize());
        const bool contiguous =
                (d <= 1 || column_bytes == int64_t(x.itemsize())) &&
                (n <= 1 || row_bytes == int64_t(d * x.itemsize()));
        row_bytes = n <= 1 ? int64_t(d * x.itemsize()) : row_bytes;
        const bool in_place = contiguous && this->center.empty();
        if (in_place && x.dtype() == nb::dtype<float>()) {
            type = gmm::ElementType::f32;
        } else if (in_place && x.dtype() == nb::dtype<uint8_t>()) {
            type = gmm::ElementType::u8;
        } else if (in_place && is_half(x.dtype())) {
            type = gmm::ElementType::f16;
        } else {
            to_float = conversion(x.dtype());
        }
    }

    gmm::Rows rows(size_t begin, size_t count, std::vector<std::byte>& scratch)
            const override {
        check_interrupt();
        const std::byte* from = data + int64_t(begin) * row_bytes;
        if (!to_float) {
            return {from, type, count, d, size_t(row_bytes)};
        }
        scratch.resize(count * d * sizeof(float));
        to_float(
                from,
                count,
                d,
                row_bytes,
                column_bytes,
                center.empty() ? nullptr : center.data(),
                reinterpret_cast<float*>(scratch.data()));
        return {scratch.data(),
                gmm::ElementType::f32,
                count,
                d,
                d * sizeof(float)};
    }
};

} // namespace

std::unique_ptr<gmm::VectorSource> array_source(
        const AnyMatrix& x, std::vector<double> center) {
    return std::make_unique<ArraySource>(x, std::move(center));
}

std::unique_ptr<gmm::VectorSource> array_source(
        const Vectors& x, std::vector<double> center) {
    if (const auto* host = std::get_if<AnyMatrix>(&x)) {
        return array_source(*host, std::move(center));
    }
    const DeviceMatrix& there = std::get<DeviceMatrix>(x);
    if (!center.empty()) {
        throw nb::value_error("offset: expected none of what is on a device");
    }
    gmm::ElementType type = gmm::ElementType::f32;
    if (is_half(there.dtype())) {
        type = gmm::ElementType::f16;
    } else if (there.dtype() == nb::dtype<uint8_t>()) {
        type = gmm::ElementType::u8;
    } else if (there.dtype() != nb::dtype<float>()) {
        throw nb::type_error(
                "x: its dtype is not one that is read on a device (float32, "
                "float16, uint8)");
    }
    return gmm::device_source(
            there.data(), there.shape(0), there.shape(1), type);
}

} // namespace faiss_ext_python
