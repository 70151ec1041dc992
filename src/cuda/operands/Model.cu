#include <algorithm>
#include <cmath>

#include "cuda/operands/AugmentedOperands.h"
#include "cuda/operands/Model.h"

namespace gmm::cuda {

namespace {

constexpr int kThreads = 128;
constexpr double kLog2e = 1.4426950408889634;

struct ModelArgs {
    int k, d, padded_k, pitch;
    int variance_kind; ///< 0: one for each component, 1: each dimension, 2: one
    bool hard, lo, squares;
    float fp16_scale, operand_scale;
    float tolerance;
    const float* means;
    const float* variances;
    const float* log_weights;
    __half* planes;
    __half* folded; ///< [1 or 2 (lo)][padded_k][pitch], or nullptr
    __half* slots;  ///< [1 or 2][padded_k][kWideSlots]
    float augmented_scale;
    double least_variance; ///< of components that have not collapsed
    bool widen; ///< the others, to this, in what is folded or of first halves
    float* constants;
    float* half_inverse;
    float* log_constant;
    unsigned char* narrow;
    float4* doubt;
    ModelErrors* errors;
};

__device__ double block_sum(double x) {
    __shared__ double parts[kThreads / 32];
    for (int step = 16; step; step /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, step);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = x;
    }
    __syncthreads();
    x = 0;
    for (int w = 0; w < kThreads / 32; w++) {
        x += parts[w];
    }
    return x;
}

__device__ double block_max(double x) {
    __shared__ double parts[kThreads / 32];
    for (int step = 16; step; step /= 2) {
        x = fmax(x, __shfl_xor_sync(0xffffffffu, x, step));
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = x;
    }
    __syncthreads();
    for (int w = 0; w < kThreads / 32; w++) {
        x = fmax(x, parts[w]);
    }
    return x;
}

/// hi and lo of x; adds what both miss, and hi alone, times the factor.
__device__ void put(
        double x,
        double factor,
        __half* hi,
        __half* lo,
        double& miss,
        double& miss_hi) {
    const __half h = __double2half(x);
    double rest = x - double(__half2float(h));
    *hi = h;
    miss_hi += factor * rest;
    if (lo) {
        *lo = __double2half(rest);
        rest -= double(__half2float(*lo));
    }
    miss += factor * rest;
}

/** One block a component. Doubles: this is O(k d) once an iteration.
 *
 * Rounding the operand moves the mean by a delta; the constant is corrected
 * so that the score at the mean itself is exact, which leaves an error that
 * grows with the distance from the mean and vanishes on average.
 */
__global__ void __launch_bounds__(kThreads)
        model_kernel(const __grid_constant__ ModelArgs args) {
    const int k = blockIdx.x;
    const int64_t plane = int64_t(args.padded_k) * args.pitch;
    __half* const hi = args.planes + int64_t(k) * args.pitch;
    __half* const hi2 = args.squares ? hi + plane : nullptr;
    __half* const lo = args.lo ? hi + (args.squares ? 2 : 1) * plane : nullptr;
    __half* const lo2 = args.lo && args.squares ? hi + 3 * plane : nullptr;
    float* const constants_hi = args.constants + k / 2 * 4 + k % 2;
    float* const constants = constants_hi + args.padded_k * 2;
    if (k >= args.k) {
        for (int j = threadIdx.x; j < args.pitch; j += kThreads) {
            for (int p = 0; p < (args.squares ? 2 : 1) * (args.lo ? 2 : 1);
                 p++) {
                hi[p * plane + j] = __half(0.f);
            }
        }
        for (int p = 0; args.folded && p < 1 + args.lo; p++) {
            for (int j = threadIdx.x; j < args.pitch; j += kThreads) {
                args.folded[p * plane + int64_t(k) * args.pitch + j] =
                        __half(0.f);
            }
            if (threadIdx.x == 0) {
                put_component_slots(
                        args.slots +
                                (p * int64_t(args.padded_k) + k) * kWideSlots,
                        65504,
                        -65504. * kAugmentedUnit);
            }
        }
        if (threadIdx.x == 0) {
            constants[0] = constants_hi[0] = 0;
            constants[2] = constants_hi[2] = -INFINITY;
        }
        return;
    }
    const float* const mean = args.means + int64_t(k) * args.d;
    const bool collapsed =
            args.variance_kind == 0 && args.variances[k] < args.least_variance;
    const bool widened = collapsed && args.widen;
    auto variance = [&](int j) -> double {
        return args.variance_kind == 2 ? args.variances[0]
                : args.variance_kind   ? args.variances[int64_t(k) * args.d + j]
                                       : args.variances[k];
    };

    // scale: of the products of the diagonal kind, so that both kinds of
    // coefficients use fp16's range.
    double scale = 1;
    if (args.squares) {
        double top = 0;
        for (int j = threadIdx.x; j < args.d; j += kThreads) {
            const double v = variance(j) * args.fp16_scale;
            top = fmax(
                    top, fmax(fabs(mean[j] / v), 0.5 / (v * args.fp16_scale)));
        }
        top = block_max(top);
        scale = exp2(12. - ceil(log2(top)));
    }

    // shift: what the products miss at the mean, with both halves of the
    // operand and with the first alone.
    double norm = 0, logs = 0, shift = 0, shift_hi = 0, error = 0, missed = 0;
    double shift_folded = 0, shift_folded_hi = 0, missed_folded = 0;
    for (int j = threadIdx.x; j < args.pitch; j += kThreads) {
        const bool inside = j < args.d;
        const double m = inside ? mean[j] : 0;
        const double v = inside && !args.hard ? variance(j) : 1;
        const double y = m * args.fp16_scale; // the mean in the rows' units
        if (args.squares) {
            const double s = inside ? scale : 0;
            const double p = args.fp16_scale;
            put(s * m / (v * p),
                y,
                hi + j,
                lo ? lo + j : nullptr,
                shift,
                shift_hi);
            put(-0.5 * s / (v * p * p),
                y * y,
                hi2 + j,
                lo2 ? lo2 + j : nullptr,
                shift,
                shift_hi);
        } else {
            put(y * args.operand_scale,
                y,
                hi + j,
                lo ? lo + j : nullptr,
                shift,
                shift_hi);
            const double rest =
                    y - double(__half2float(hi[j])) / args.operand_scale;
            missed += rest * rest;
            if (args.folded) {
                const double x = kLog2e * m /
                        ((widened ? args.least_variance : v) * args.fp16_scale);
                __half* const to = args.folded + int64_t(k) * args.pitch + j;
                put(x,
                    y,
                    to,
                    lo ? to + plane : nullptr,
                    shift_folded,
                    shift_folded_hi);
                const double rest_folded = x - double(__half2float(*to));
                missed_folded += rest_folded * rest_folded;
            }
        }
        if (inside) {
            norm += m * m / v;
            logs += log(6.283185307179586 * v);
            if (args.squares) {
                const double t = m * m / v;
                error += (t + 1) * (t + 1) / 2 + t * (t + 1);
            } else {
                error += 2 * m * m / v + 1;
            }
            if (args.variance_kind == 1 && !args.hard) {
                args.half_inverse[int64_t(k) * args.d + j] =
                        float(0.5 * kLog2e / v);
            }
        }
    }
    norm = block_sum(norm);
    logs = block_sum(logs);
    shift = block_sum(shift);
    shift_hi = block_sum(shift_hi);
    missed = block_sum(missed);
    shift_folded = block_sum(shift_folded);
    shift_folded_hi = block_sum(shift_folded_hi);
    missed_folded = block_sum(missed_folded);
    error = block_sum(error);
    if (threadIdx.x) {
        return;
    }
    if (args.hard) {
        const double p = double(args.fp16_scale) * args.fp16_scale;
        const double a = 1. / args.operand_scale;
        constants[0] = constants_hi[0] = float(a);
        constants[2] = float(-0.5 * norm * p + a * shift);
        constants_hi[2] = float(-0.5 * norm * p + a * shift_hi);
        return;
    }
    const double peak = kLog2e * (args.log_weights[k] - 0.5 * logs);
    const double a = args.squares ? kLog2e / scale
                                  : kLog2e /
                    (variance(0) * args.fp16_scale * args.fp16_scale *
                     args.operand_scale);
    const double shrink = widened ? variance(0) / args.least_variance : 1;
    constants[0] = float(a);
    constants[2] = float(peak - 0.5 * kLog2e * norm + a * shift);
    constants_hi[0] = float(a * shrink);
    constants_hi[2] =
            float(peak + shrink * (a * shift_hi - 0.5 * kLog2e * norm));
    for (int p = 0; args.folded && p < 1 + args.lo; p++) {
        put_component_slots(
                args.slots + (p * int64_t(args.padded_k) + k) * kWideSlots,
                a * shrink * args.operand_scale * args.augmented_scale,
                peak - 0.5 * kLog2e * shrink * norm +
                        (p ? shift_folded : shift_folded_hi));
    }
    args.log_constant[k] = float(peak);
    if (args.variance_kind != 1) {
        args.half_inverse[k] = float(0.5 * kLog2e / variance(0));
    }
    // Half an ulp of fp16, root mean square over mantissas: about 2^-13.
    const double rms = sqrt(error) / 8192;
    const bool above = collapsed || rms > args.tolerance;
    if (args.squares) {
        // Sums are of Y and of what they square themselves: rounding Y is all
        // that shows in them, as below.
        const double of_mean = sqrt(2 * norm + args.d) / 8192;
        args.narrow[k] = of_mean > 4 * args.tolerance ? 2 : above ? 1 : 0;
        // The estimate, and as much again for a row as far out as most.
        args.doubt[k] = make_float4(
                float(rms * rms / (0.5 * kLog2e * args.d)),
                1,
                float(peak),
                float(rms));
    } else {
        // Scores are judged pair by pair.
        args.narrow[k] = collapsed         ? Model::kCollapsed
                : rms > 4 * args.tolerance ? 2
                : above                    ? 1
                                           : 0;
        const double v = variance(0);
        const double to_mean = args.folded ? v * args.fp16_scale / kLog2e
                                           : 1. / args.fp16_scale;
        // Collapsed: whatever the row.
        args.doubt[k] = collapsed
                ? make_float4(1e30f, 1, float(peak), 1e30f)
                : make_float4(
                          float(2 / (kLog2e * v * args.d)),
                          float((args.folded ? missed_folded : missed) *
                                to_mean * to_mean),
                          float(peak),
                          float(3e-7 /
                                (v * args.fp16_scale * args.fp16_scale)));
    }
    // Positive floats compare as integers; neither has an order.
    const double rms_made = sqrt(shrink * (error - args.d) + args.d) / 8192;
    atomicMax(
            reinterpret_cast<int*>(&args.errors->worst),
            __float_as_int(float(widened ? rms_made : rms)));
    atomicMax(
            reinterpret_cast<int*>(&args.errors->as_is),
            __float_as_int(float(rms)));
    atomicAdd(&args.errors->narrow, int(above));
    atomicAdd(&args.errors->collapsed, int(collapsed));
}

} // namespace

void Model::prepare(const ModelUse& use, cudaStream_t stream) {
    const auto& [hard, fp16_scale, with_lo, tolerance, widen, largest_q] = use;
    survey.wait(stream);
    geometry = covariance == Covariance::diagonal && !hard ? Geometry::squares
                                                           : Geometry::product;
    lo = with_lo;
    const bool squares = geometry == Geometry::squares;
    const int pitch = (d + 7) / 8 * 8;
    operand_.pitch = pitch;
    operand_.rows = padded_k;
    operand_.planes = (squares ? 2 : 1) * (lo ? 2 : 1);
    const size_t plane = size_t(padded_k) * pitch;
    folded = !hard && can_augment(fp16_scale);
    // Of components that have not collapsed.
    const double least = hard ? 0 : least_foldable(fp16_scale, largest_q);
    least_variance = widen ? least : 0;
    folded |= least_variance > 0;
    const int folded_planes = lo ? 2 : 1;
    planes_.reserve(
            ((operand_.planes + folded_planes) * plane +
             size_t(padded_k) * kWideSlots * folded_planes) *
            sizeof(__half));
    operand_.data = planes_.as<__half>();
    __half* const folded_data = planes_.as<__half>() + operand_.planes * plane;
    __half* const slots = folded_data + folded_planes * plane;
    folded_.components = {folded_data, padded_k, pitch, folded_planes};
    folded_.component_slots = {slots, padded_k, kWideSlots, folded_planes};
    // Means far outside the data must not overflow.
    const float top = float(survey.largest_mean * fp16_scale);
    operand_scale =
            top > 16384 ? std::exp2(std::floor(std::log2(16384 / top))) : 1.f;

    ModelArgs args;
    args.k = k;
    args.d = d;
    args.padded_k = padded_k;
    args.pitch = pitch;
    args.variance_kind = covariance == Covariance::isotropic ? 0
            : covariance == Covariance::diagonal             ? 1
                                                             : 2;
    args.hard = hard;
    args.lo = lo;
    args.squares = squares;
    args.fp16_scale = fp16_scale;
    args.operand_scale = operand_scale;
    args.tolerance = float(tolerance);
    args.means = means;
    args.variances = variances_;
    args.log_weights = log_weights_;
    args.planes = planes_.as<__half>();
    args.folded = folded ? folded_data : nullptr;
    args.slots = slots;
    args.augmented_scale = augmented_scale(d, fp16_scale);
    args.least_variance = least;
    args.widen = least_variance > 0;
    args.constants = reinterpret_cast<float*>(constants_);
    args.half_inverse = half_inverse;
    args.log_constant = log_constant;
    args.narrow = narrow;
    args.doubt = doubt;
    args.errors = errors_;
    check(cudaMemsetAsync(errors_, 0, sizeof(ModelErrors), stream), "clearing");
    model_kernel<<<padded_k, kThreads, 0, stream>>>(args);
    check_launch("preparation of the model");
}

ModelErrors Model::errors(cudaStream_t stream) {
    errors_host_.reserve(sizeof(ModelErrors));
    copy(errors_host_.as<ModelErrors>(), errors_, 1, stream);
    check(cudaStreamSynchronize(stream), "preparation of the model");
    return *errors_host_.as<ModelErrors>();
}

} // namespace gmm::cuda
