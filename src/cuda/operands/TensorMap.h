#pragma once

#include <cuda.h>

#include "cuda/score/Score.h"

namespace gmm::cuda {

/// Boxes of `columns` by `rows` of a plane for the copy engine; what lies
/// outside is zeros. `swizzle`: as wgmma's descriptors expect it
/// (PtxHopper.cuh).
CUtensorMap tensor_map(
        const Operand& operand,
        int columns,
        int rows,
        CUtensorMapSwizzle swizzle);

/// Where the kernels of folded operands (AugmentedOperands.h) load from: chunks
/// of 64 dimensions of a tile of rows, or of kComponentTile components, and
/// slots.
struct AugmentedMaps {
    CUtensorMap rows, row_slots, components, component_slots;

    /// @param row_tile  rows of a load; their slots have the given swizzle
    AugmentedMaps(
            const Operand& rows_operand,
            int row_tile,
            CUtensorMapSwizzle row_slot_swizzle,
            const Operand& row_slots_operand,
            const Operand& components_operand,
            const Operand& component_slots_operand);
};

} // namespace gmm::cuda
