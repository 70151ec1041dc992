#pragma once

#include "cuda/full/Full.h"

/** Which components may matter to a row, by all coordinates in fp16: where the
 * bound of the first ones leaves many. Screen.cu on mma.sync, ScreenHopper.cu
 * on wgmma. */
namespace gmm::cuda::full {

/// Up to this dimension, rows can be screened.
constexpr int kScreenDimension = 128;

struct ScreenTerms {
    float log_norm;
    float scale;       ///< of lengths
    float error;       ///< of a length for each unit of a row's spread
    float least_error; ///< and whatever the row
};

/// What a kernel reads of a component: its factor in fp16, and what else there
/// is to know.
size_t screen_bytes(int d);

/// Fills `operands`, k * screen_bytes(d), after prepare_model.
void prepare_screen(
        const FullModelView& model,
        bool hopper,
        char* operands,
        cudaStream_t stream);

struct ScreenArgs {
    int k, d;
    const char* operands;
    FullRows rows;
    int64_t count;
    const float* least; ///< in whole kBoundRows, +infinity beyond the last row
    float reach;
    PairBits pairs;
};

/** As bound_components, by all coordinates; `least` is raised on the way by
 * log-joints that are seen, less reach. d <= kScreenDimension.
 *
 * @param hopper  as prepare_screen was told */
void screen_components(
        const ScreenArgs& args, bool hopper, cudaStream_t stream);

// ---- for the two files ----

void screen_hopper(const ScreenArgs& args, cudaStream_t stream);

} // namespace gmm::cuda::full
