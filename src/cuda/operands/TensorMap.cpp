#include "cuda/operands/TensorMap.h"

#include <cudaTypedefs.h>

#include "cuda/engine/Check.h"
#include "cuda/operands/AugmentedOperands.h"

namespace gmm::cuda {

CUtensorMap tensor_map(
        const Operand& operand,
        int columns,
        int rows,
        CUtensorMapSwizzle swizzle) {
    static const auto encode = [] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult found;
        check(cudaGetDriverEntryPointByVersion(
                      "cuTensorMapEncodeTiled",
                      &function,
                      12000,
                      cudaEnableDefault,
                      &found),
              "looking up cuTensorMapEncodeTiled");
        return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
    }();
    CUtensorMap map;
    const cuuint64_t sizes[3] = {
            cuuint64_t(operand.pitch),
            cuuint64_t(operand.rows),
            cuuint64_t(operand.planes)};
    const cuuint64_t strides[2] = {
            cuuint64_t(operand.pitch) * 2,
            cuuint64_t(operand.pitch) * 2 * cuuint64_t(operand.rows)};
    const cuuint32_t box[3] = {cuuint32_t(columns), cuuint32_t(rows), 1};
    const cuuint32_t ones[3] = {1, 1, 1};
    const CUresult result = encode ? encode(&map,
                                            CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                                            3,
                                            const_cast<__half*>(operand.data),
                                            sizes,
                                            strides,
                                            box,
                                            ones,
                                            CU_TENSOR_MAP_INTERLEAVE_NONE,
                                            swizzle,
                                            CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                                            CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE)
                                   : CUDA_ERROR_NOT_FOUND;
    if (result != CUDA_SUCCESS) {
        throw DeviceError(
                "CUDA: cuTensorMapEncodeTiled: error " +
                std::to_string(int(result)));
    }
    return map;
}

AugmentedMaps::AugmentedMaps(
        const Operand& rows_operand,
        int row_tile,
        CUtensorMapSwizzle row_slot_swizzle,
        const Operand& row_slots_operand,
        const Operand& components_operand,
        const Operand& component_slots_operand) {
    constexpr int kDepth = 64;
    constexpr auto kWide = CU_TENSOR_MAP_SWIZZLE_128B;
    rows = tensor_map(rows_operand, kDepth, row_tile, kWide);
    row_slots = tensor_map(
            row_slots_operand, kWideSlots, row_tile, row_slot_swizzle);
    components = tensor_map(components_operand, kDepth, kComponentTile, kWide);
    component_slots = tensor_map(
            component_slots_operand,
            kWideSlots,
            kComponentTile,
            CU_TENSOR_MAP_SWIZZLE_32B);
}

} // namespace gmm::cuda
