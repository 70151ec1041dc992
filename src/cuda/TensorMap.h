#pragma once

#include <cuda.h>

#include "Score.h"

namespace gmm::cuda {

/// Boxes of `columns` by `rows` of a plane for the copy engine; what lies
/// outside is zeros. `swizzle`: as wgmma's descriptors expect it (Ptx.cuh).
CUtensorMap tensor_map(
        const Operand& operand,
        int columns,
        int rows,
        CUtensorMapSwizzle swizzle);

} // namespace gmm::cuda
