#pragma once

#include <vector>

#include "cuda/engine/Check.h"

namespace gmm::cuda {

/** What the host asks of a model's values, found on the device, which sees them
 * faster than the host does. */
struct ModelSurvey {
    /** Begins.
     *
     * @param variances  of component c that at [c * stride]
     */
    void start(
            const float* means,
            const float* variances,
            const float* log_weights,
            int k,
            int d,
            int stride,
            cudaStream_t stream);

    /// Until what follows is that of the model begun with.
    void wait(cudaStream_t stream);

    double largest_mean = 0; ///< |coordinate|
    /// Over the components, of an isotropic or tied model: 1 / v, largest
    /// |mean| / v, and at most what a score's constant can be, bits.
    double largest_inverse = 0, largest_scaled = 0, largest_constant = 0;
    /// |mean|^2; what of a score's constant does not come from it.
    double largest_norm = 0, largest_peak = 0;
    /// sum_k pi_k m_kj^2, size d: see Fp16ErrorModel.h
    std::vector<double> explained;

private:
    DeviceMemory memory_;
    PinnedMemory host_;
    bool under_way_ = false;
};

} // namespace gmm::cuda
