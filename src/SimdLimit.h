#pragma once

#include <cstdlib>
#include <string_view>

namespace gmm {

enum class SimdLimit { none, avx2, all };

/** The widest instructions that the process may use: FAISS_SIMD_LEVEL, the
 * environment variable of FAISS since 1.14, holds these kernels too.
 *
 * NONE and AVX2 limit; anything else, or nothing, does not.
 */
inline SimdLimit simd_limit() {
    const char* value = std::getenv("FAISS_SIMD_LEVEL");
    const std::string_view level = value ? value : "";
    return level == "NONE"    ? SimdLimit::none
            : level == "AVX2" ? SimdLimit::avx2
                              : SimdLimit::all;
}

} // namespace gmm
