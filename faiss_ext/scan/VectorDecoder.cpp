#include "faiss_ext/scan/VectorDecoder.h"

#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/invlists/InvertedLists.h>

#include "faiss_ext/coarse/coarse.h"

namespace faiss_ext {

VectorDecoder::VectorDecoder(const faiss::IndexIVF& ivf_in) : ivf(ivf_in) {
    using SQ = faiss::ScalarQuantizer;
    if (auto index = dynamic_cast<const faiss::IndexIVFPQ*>(&ivf)) {
        means = index->by_residual ? means_in_memory(ivf) : nullptr;
        if (means || !index->by_residual) {
            product = &index->pq;
            kind = Kind::product;
        }
        return;
    }
    auto index = dynamic_cast<const faiss::IndexIVFScalarQuantizer*>(&ivf);
    if (!index) {
        return;
    }
    means = index->by_residual ? means_in_memory(ivf) : nullptr;
    if (index->by_residual && !means) {
        return;
    }
    const size_t d = ivf.d;
    const SQ& sq = index->sq;
    switch (sq.qtype) {
        case SQ::QT_8bit:
        case SQ::QT_8bit_uniform: {
            // least + (code + 1/2) / 255 * range
            const bool each = sq.qtype == SQ::QT_8bit;
            scale.resize(d);
            offset.resize(d);
            for (size_t j = 0; j < d; j++) {
                scale[j] = sq.trained[each ? d + j : 1] / 255;
                offset[j] = sq.trained[each ? j : 0] + scale[j] / 2;
            }
            kind = Kind::bytes;
            break;
        }
        case SQ::QT_8bit_direct:
            scale.assign(d, 1);
            offset.assign(d, 0);
            kind = Kind::bytes;
            break;
        case SQ::QT_fp16:
            kind = Kind::halves;
            break;
        default:
            quantizer.reset(sq.select_quantizer());
            kind = Kind::quantizer;
    }
}

void VectorDecoder::operator()(size_t list, size_t entry, float* out) const {
    if (kind == Kind::any) {
        ivf.reconstruct_from_offset(list, entry, out);
        return;
    }
    faiss::InvertedLists::ScopedCodes code(ivf.invlists, list, entry);
    const size_t d = ivf.d;
    switch (kind) {
        case Kind::bytes:
            kernels.decode_bytes(
                    d, code.get(), scale.data(), offset.data(), out);
            break;
        case Kind::halves:
            kernels.decode_halves(d, code.get(), out);
            break;
        case Kind::product:
            product->decode(code.get(), out);
            break;
        default:
            quantizer->decode_vector(code.get(), out);
    }
    if (means) {
        const float* mean = means + list * d;
        for (size_t j = 0; j < d; j++) {
            out[j] += mean[j];
        }
    }
}

} // namespace faiss_ext
