#pragma once

#include <memory>
#include <vector>

#include "cuda/engine/Engine.h"
#include "cuda/full/Full.h"

namespace gmm::cuda {

/** The soft E-step of kind `tied`, for one device's rows: in coordinates z = y
 * U all components have the same multiple of the identity for their covariance,
 * so that an Engine for tied_spherical does it, without a matrix for each pair
 * of row and component. Its sums are brought back to the frame's coordinates.
 *
 * Not for rows and means that are so many deviations from the origin that z in
 * fp32 and fp16 halves would not do.
 */
struct Whitened {
    Whitened(int device, const CudaOptions& options)
            : device_(device), options_(options) {}

    /// @param means  device memory, k * pitch, as `factor` is d * pitch; the
    ///               latter is read until the next model
    void set_model(
            const GaussianMixture& model,
            const float* means,
            const float* factor,
            cudaStream_t stream);

    /// The rows that accumulate() is of: `rows` are [begin, end) of the source,
    /// and stay where they are until release().
    void bind(
            const VectorSource& source,
            size_t begin,
            size_t end,
            const float* weights,
            double weight_scale,
            const full::FullRows& rows,
            size_t memory_limit,
            cudaStream_t stream);
    /// Those rows, if any are bound.
    const float* bound() const {
        return engine ? rows_.from.y : nullptr;
    }
    void release();
    size_t bytes() const; ///< of device memory

    /// False, and there are no sums, if rows or means are too far away.
    bool accumulate();

    /// The last accumulate()'s sums without the second moments of all rows, to
    /// stats of the model's shape: replaces what is there, or adds to it.
    void read_sums(bool add, SufficientStats& stats);

    /// As FullEngine has it.
    std::vector<float> row_log_prob() const;

    std::unique_ptr<Engine> engine; ///< of what is bound

private:
    /// z of the rows, in two buffers in turn: what reads one is on the engine's
    /// stream before the next but one is asked for.
    struct Rows : VectorSource {
        gmm::Rows rows(size_t begin, size_t count, std::vector<std::byte>&)
                const override;

        size_t first = 0; ///< the number of the first of `from`
        full::FullRows from = {};
        const float* factor = nullptr;
        unsigned int* largest = nullptr;
        cudaStream_t stream = nullptr;
        mutable DeviceMemory buffers[2];
        mutable int turn = 0;
    };

    int device_;
    CudaOptions options_;
    Rows rows_;
    GaussianMixture model_; ///< tied_spherical
    std::vector<float> factor_;
    double volume_ = 0; ///< log-density of y beyond that of z
    DeviceMemory squares_, small_;
    bool near_ = false; ///< the means are
};

} // namespace gmm::cuda
