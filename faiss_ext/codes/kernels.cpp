#include "faiss_ext/codes/kernels.h"

#include "SimdLimit.h"

namespace faiss_ext {

extern const CodeKernels code_kernels_portable;
#ifdef FAISS_EXT_X86_64
extern const CodeKernels code_kernels_avx2;
extern const CodeKernels code_kernels_avx512;
#endif

const CodeKernels* code_kernels(SimdLevel level) {
#ifdef FAISS_EXT_X86_64
    if (level == SimdLevel::avx512) {
        return __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq")
                ? &code_kernels_avx512
                : nullptr;
    }
    if (level == SimdLevel::avx2) {
        return __builtin_cpu_supports("avx2") ? &code_kernels_avx2 : nullptr;
    }
#endif
    return level == SimdLevel::portable ? &code_kernels_portable : nullptr;
}

const CodeKernels& best_code_kernels() {
    static const CodeKernels* const best = [] {
        const gmm::SimdLimit limit = gmm::simd_limit();
        const CodeKernels* found = nullptr;
        if (limit == gmm::SimdLimit::all) {
            found = code_kernels(SimdLevel::avx512);
        }
        if (!found && limit != gmm::SimdLimit::none) {
            found = code_kernels(SimdLevel::avx2);
        }
        return found ? found : code_kernels(SimdLevel::portable);
    }();
    return *best;
}

} // namespace faiss_ext
