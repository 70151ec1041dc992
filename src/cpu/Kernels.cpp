#include "Kernels.h"

#include "SimdLimit.h"

namespace gmm {

extern const Kernels kernels_portable;
#ifdef GMM_X86_64
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

const Kernels* kernels(InstructionSet set) {
#ifdef GMM_X86_64
    if (set == InstructionSet::avx512) {
        return __builtin_cpu_supports("avx512f") ? &kernels_avx512 : nullptr;
    }
    if (set == InstructionSet::avx2) {
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")
                ? &kernels_avx2
                : nullptr;
    }
#endif
    return set == InstructionSet::portable ? &kernels_portable : nullptr;
}

const Kernels& best_kernels() {
    static const Kernels* const best = [] {
        const SimdLimit limit = simd_limit();
        const Kernels* found = nullptr;
        if (limit == SimdLimit::all) {
            found = kernels(InstructionSet::avx512);
        }
        if (!found && limit != SimdLimit::none) {
            found = kernels(InstructionSet::avx2);
        }
        return found ? found : &kernels_portable;
    }();
    return *best;
}

} // namespace gmm
