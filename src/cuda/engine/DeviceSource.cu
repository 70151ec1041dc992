#include "DeviceSource.h"

#include <cuda_fp16.h>

#include <algorithm>
#include <vector>

#include "cuda/engine/Check.h"

namespace gmm {

namespace {

using cuda::check;
using cuda::check_launch;
using cuda::DeviceMemory;

/// Rows whose sums are one number, and how many of these are held: as
/// fit_frame() has them.
constexpr int kRows = 256;
constexpr size_t kBlocks = 4096;
/// Rows that are collected at a time.
constexpr size_t kGathered = 65536;

__device__ __forceinline__ float as_float(float x) {
    return x;
}
__device__ __forceinline__ float as_float(__half x) {
    return __half2float(x);
}
__device__ __forceinline__ float as_float(unsigned char x) {
    return x;
}

/// Sums of kRows rows each; a thread has a dimension. Without fused operations,
/// which the host's do not use.
template <class T>
__global__ void block_moments(
        const T* x,
        int64_t n,
        int64_t first,
        int d,
        const float* pivot,
        const float* weights,
        double* sums,
        unsigned long long* first_bad) {
    const int64_t begin = int64_t(blockIdx.x) * kRows;
    const int64_t end = min(begin + kRows, n);
    for (int j = threadIdx.x; j < d; j += blockDim.x) {
        double sum = 0, square = 0;
        for (int64_t i = begin; i < end; i++) {
            const float value = as_float(x[i * d + j]);
            if (!isfinite(value)) {
                atomicMin(first_bad, (unsigned long long)(first + i));
            }
            const double diff = __dsub_rn(double(value), double(pivot[j]));
            const double w = weights ? double(weights[i]) : 1.0;
            const double part = __dmul_rn(w, diff);
            sum = __dadd_rn(sum, part);
            square = __dadd_rn(square, __dmul_rn(part, diff));
        }
        double* const out = sums + size_t(blockIdx.x) * 2 * d;
        out[j] = sum;
        out[d + j] = square;
    }
}

__global__ void add_blocks(
        const double* sums, int blocks, int width, double* total) {
    const int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= width) {
        return;
    }
    double sum = total[j];
    for (int b = 0; b < blocks; b++) {
        sum = __dadd_rn(sum, sums[size_t(b) * width + j]);
    }
    total[j] = sum;
}

__global__ void gather_kernel(
        const unsigned char* x,
        size_t row_bytes,
        const unsigned long long* ids,
        unsigned char* out) {
    const unsigned char* const from = x + ids[blockIdx.x] * row_bytes;
    unsigned char* const to = out + blockIdx.x * row_bytes;
    for (size_t j = threadIdx.x; j < row_bytes; j += blockDim.x) {
        to[j] = from[j];
    }
}

/// The calling thread's device, for a while.
struct OnDevice : cuda::KeepDevice {
    explicit OnDevice(int device) {
        check(cudaSetDevice(device), "choosing the device");
    }
};

struct ContiguousDeviceSource : DeviceSource {
    const char* data = nullptr;
    int device = 0;

    Rows device_rows(size_t begin, size_t count) const override {
        require_range(begin, count);
        const size_t stride = d * element_size(type);
        return {data + begin * stride, type, count, d, stride};
    }

    Rows rows(size_t begin, size_t count, std::vector<std::byte>& scratch)
            const override {
        const Rows there = device_rows(begin, count);
        const size_t bytes = count * there.stride;
        scratch.resize(bytes);
        check(cudaMemcpy(
                      scratch.data(),
                      there.data,
                      bytes,
                      cudaMemcpyDeviceToHost),
              "reading rows");
        bytes_to_host += bytes;
        return {scratch.data(), type, count, d, there.stride};
    }

    void gather(const size_t* ids, size_t count, void* out) const override {
        const OnDevice on(device);
        const size_t stride = d * element_size(type);
        const size_t most = std::min(count, kGathered);
        DeviceMemory numbers, some;
        numbers.reserve(most * sizeof(unsigned long long));
        some.reserve(most * stride);
        for (size_t begin = 0; begin < count; begin += most) {
            const size_t part = std::min(most, count - begin);
            std::vector<unsigned long long> wanted(
                    ids + begin, ids + begin + part);
            for (size_t id : wanted) {
                require_range(id, 1);
            }
            cuda::copy(
                    numbers.as<unsigned long long>(),
                    wanted.data(),
                    part,
                    nullptr);
            gather_kernel<<<unsigned(part), 128>>>(
                    reinterpret_cast<const unsigned char*>(data),
                    stride,
                    numbers.as<unsigned long long>(),
                    some.as<unsigned char>());
            check_launch("gather_kernel");
            check(cudaMemcpy(
                          static_cast<char*>(out) + begin * stride,
                          some.as<char>(),
                          part * stride,
                          cudaMemcpyDeviceToHost),
                  "reading rows");
        }
        bytes_to_host += count * stride;
    }

    size_t moments(
            const float* pivot,
            const float* weights,
            double* sum,
            double* square) const override {
        switch (type) {
            case ElementType::f16:
                return moments_of<__half>(pivot, weights, sum, square);
            case ElementType::u8:
                return moments_of<unsigned char>(pivot, weights, sum, square);
            case ElementType::f32:
                break;
        }
        return moments_of<float>(pivot, weights, sum, square);
    }

private:
    template <class T>
    size_t moments_of(
            const float* pivot,
            const float* weights,
            double* sum,
            double* square) const {
        const OnDevice on(device);
        const size_t rows = std::min(n, kBlocks * kRows);
        const size_t blocks = (rows + kRows - 1) / kRows;
        DeviceMemory pivots, sums, total, bad, some_weights;
        pivots.reserve(d * sizeof(float));
        sums.reserve(blocks * 2 * d * sizeof(double));
        total.reserve(2 * d * sizeof(double));
        bad.reserve(sizeof(unsigned long long));
        cuda::copy(pivots.as<float>(), pivot, d, nullptr);
        check(cudaMemset(total.as<char>(), 0, total.bytes()), "clearing");
        check(cudaMemset(bad.as<char>(), 0xff, bad.bytes()), "clearing");
        if (weights) {
            some_weights.reserve(rows * sizeof(float));
        }
        for (size_t begin = 0; begin < n; begin += rows) {
            const size_t count = std::min(rows, n - begin);
            const int here = int((count + kRows - 1) / kRows);
            if (weights) {
                cuda::copy(
                        some_weights.as<float>(),
                        weights + begin,
                        count,
                        nullptr);
            }
            block_moments<<<here, 128>>>(
                    reinterpret_cast<const T*>(data) + begin * d,
                    int64_t(count),
                    int64_t(begin),
                    int(d),
                    pivots.as<float>(),
                    weights ? some_weights.as<float>() : nullptr,
                    sums.as<double>(),
                    bad.as<unsigned long long>());
            check_launch("block_moments");
            add_blocks<<<unsigned(2 * d + 127) / 128, 128>>>(
                    sums.as<double>(), here, int(2 * d), total.as<double>());
            check_launch("add_blocks");
        }
        std::vector<double> host(2 * d);
        unsigned long long first_bad = 0;
        cuda::copy(host.data(), total.as<double>(), 2 * d, nullptr);
        cuda::copy(&first_bad, bad.as<unsigned long long>(), 1, nullptr);
        check(cudaStreamSynchronize(nullptr), "the sums of all rows");
        std::copy_n(host.data(), d, sum);
        std::copy_n(host.data() + d, d, square);
        return std::min<unsigned long long>(first_bad, n);
    }

    void require_range(size_t begin, size_t count) const {
        if (begin > n || count > n - begin) {
            throw_invalid(
                    "rows: begin = %zu, count = %zu, expected begin + count "
                    "<= n = %zu",
                    begin,
                    count,
                    n);
        }
    }
};

} // namespace

std::unique_ptr<DeviceSource> device_source(
        const void* data, size_t n, size_t d, ElementType type) {
    if (n == 0 || d == 0) {
        throw_invalid(
                "n = %zu, d = %zu, expected at least one vector of at least "
                "one dimension",
                n,
                d);
    }
    cudaPointerAttributes place;
    check(cudaPointerGetAttributes(&place, data), "finding the vectors");
    if (place.type != cudaMemoryTypeDevice &&
        place.type != cudaMemoryTypeManaged) {
        throw_invalid("data = %p, expected memory of a CUDA device", data);
    }
    auto source = std::make_unique<ContiguousDeviceSource>();
    source->n = n;
    source->d = d;
    source->type = type;
    source->data = static_cast<const char*>(data);
    source->device = place.device;
    const OnDevice on(place.device);
    check(cudaDeviceSynchronize(), "what made the vectors");
    return source;
}

} // namespace gmm
