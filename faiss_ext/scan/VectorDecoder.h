#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include <faiss/IndexIVF.h>
#include <faiss/impl/ProductQuantizer.h>
#include <faiss/impl/ScalarQuantizer.h>

#include "faiss_ext/codes/kernels.h"

namespace faiss_ext {

/** Decodes single entries of an index's lists, as reconstruct_from_offset,
 * which would start threads for one vector.
 *
 * Scalar quantizers of 8 and 16 bits have loops of our own: FAISS's takes
 * 600 ns for 128 dimensions where it was built for any processor. Of product
 * quantizers it copies the list's mean each time.
 */
class VectorDecoder {
public:
    explicit VectorDecoder(const faiss::IndexIVF& ivf);

    /// @param out  size d
    void operator()(size_t list, size_t entry, float* out) const;

private:
    enum class Kind { bytes, halves, product, quantizer, any };

    const faiss::IndexIVF& ivf;
    const CodeKernels& kernels = best_code_kernels();
    Kind kind = Kind::any;
    std::vector<float> scale, offset; ///< size d: of bytes
    std::unique_ptr<faiss::ScalarQuantizer::SQuantizer> quantizer;
    const faiss::ProductQuantizer* product = nullptr;
    const float* means = nullptr; ///< where residuals are encoded
};

} // namespace faiss_ext
