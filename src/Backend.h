#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "GaussianMixture.h"
#include "SufficientStats.h"
#include "VectorSource.h"

namespace gmm {

enum class EStep {
    soft, ///< responsibilities r_ik = exp(log_joint_ik - log p(x_i))
    hard, ///< k-means: all of a vector goes to the nearest mean
};

/** The E-step on one kind of hardware.
 *
 * A backend is bound to data once and asked for statistics once an iteration,
 * so that a GPU can keep what fits on the device and stream what does not. No
 * backend ever holds an n x k array.
 */
struct Backend {
    /// "cpu" or "cuda".
    virtual std::string name() const = 0;

    /** Binds the data that accumulate() reads until the next call.
     *
     * @param source   must outlive that, as must weights
     * @param weights  size source.n, or nullptr: every vector weighs 1
     * @param frame    the units that models and statistics are in; copied
     */
    virtual void set_data(
            const VectorSource& source,
            const float* weights,
            const Frame& frame) = 0;

    /// Sets the model of the next calls, in the units of the frame of
    /// set_data() (Frame::to_frame); copied. After gmm::train() that is train's
    /// own frame.
    virtual void set_model(const GaussianMixture& model) = 0;

    /** One pass over the bound data: the E-step of the model, whose statistics
     * (in the frame's units) replace `stats`.
     *
     * The same data, model and backend give the same bits.
     */
    virtual void accumulate(EStep step, SufficientStats& stats) = 0;

    /** The m most responsible components of each vector, best first.
     *
     * A vector with a value that is not finite gets components of -1, distances
     * of infinity and a log_joint and log_prob of -infinity. Equal components
     * come in the order of their numbers. May be called from several threads at
     * once.
     *
     * @param x           vectors in the user's units, whether bound by set_data
     *                    or not
     * @param m           1 <= m <= k
     * @param components  size x.n * m
     * @param log_joint   log pi_k + log N in the user's units, size x.n * m,
     *                    or nullptr; in double since responsibilities come from
     *                    differences, which are small for vectors far away
     * @param distances   squared L2 to the mean in the user's units, size
     *                    x.n * m, or nullptr
     * @param log_prob    log p(x) over all components, size x.n, or nullptr
     * @param order       EStep::hard: the m nearest components instead
     */
    virtual void top_components(
            const Rows& x,
            size_t m,
            int64_t* components,
            double* log_joint,
            float* distances,
            float* log_prob = nullptr,
            EStep order = EStep::soft) = 0;

    virtual ~Backend() = default;
};

/// A backend on the CPU, for every kind of mixture.
std::unique_ptr<Backend> make_cpu_backend();

/** A backend on the CPU for very many components, of isotropic, tied_spherical
 * or diagonal covariance. Vectors fall into 4 sqrt(k) groups, and accumulate()
 * compares each with only the g sqrt(k) components nearest to the middle of its
 * group: an E-step takes time O((n g + k) sqrt(k) d) instead of O(n k d), and
 * memory O(k d), 4 g k numbers and 64 MB of vectors or 512 a group.
 * Responsibilities of the other components are left out; top_components looks
 * at all. Of 16,384 components on SIFT, g = 16 finds means that are 0.3 %
 * farther (squared) than the nearest ones (bench/results/scale.md).
 *
 * @param nearby  g, at least 1
 */
std::unique_ptr<Backend> make_grouped_cpu_backend(size_t nearby = 16);

/// Whether the program was built with CUDA and a usable device is present; if
/// not, why_not (unless nullptr) is set to what is missing.
bool cuda_available(std::string* why_not = nullptr);

/// The most dimensions and components that the CUDA backend takes.
constexpr size_t kMaxCudaDimension = 2048;
constexpr size_t kMaxCudaComponents = size_t(1) << 23;
constexpr bool cuda_takes(size_t d, size_t k) {
    return d <= kMaxCudaDimension && k <= kMaxCudaComponents;
}

/// A backend on a GPU, with the defaults of CudaOptions. Throws DeviceError if
/// cuda_available() is false.
std::unique_ptr<Backend> make_cuda_backend();

} // namespace gmm
