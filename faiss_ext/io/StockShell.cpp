#include "faiss_ext/io/StockShell.h"

#include <typeinfo>

#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/IndexIVFRaBitQGMM.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/impl/errors.h"

namespace faiss_ext {

StockShell::StockShell(const faiss::Index& index) : root(&index) {
    if (dynamic_cast<const IndexIVFRaBitQGMM*>(unwrap(&index))) {
        root = copy_of(index);
    }
}

/// A copy of a wrapper about another index, which it does not own.
template <class Wrapper>
const faiss::Index* StockShell::keep(
        const Wrapper& wrapper, const faiss::Index* inner) {
    auto copy = std::make_unique<Wrapper>();
    *copy = wrapper;
    copy->own_fields = false;
    if constexpr (requires { copy->own_refine_index; }) {
        copy->own_refine_index = false;
    }
    owned.push_back(std::move(copy));
    faiss::Index* out = owned.back().get();
    *inside(out) = const_cast<faiss::Index*>(inner);
    return out;
}

const faiss::Index* StockShell::copy_of(const faiss::Index& index) {
    if (auto ivf = dynamic_cast<const IndexIVFRaBitQGMM*>(&index)) {
        auto shell = std::make_unique<faiss::IndexIVFFlat>();
        static_cast<faiss::Index&>(*shell) = *ivf;
        static_cast<faiss::Level1Quantizer&>(*shell) = *ivf;
        shell->own_fields = false;
        shell->nprobe = ivf->nprobe;
        shell->code_size = ivf->d * sizeof(float);
        shell->invlists =
                new faiss::ArrayInvertedLists(ivf->nlist, shell->code_size);
        shell->own_invlists = true;
        owned.push_back(std::move(shell));
        return owned.back().get();
    }
    const faiss::Index* inner = *inside(const_cast<faiss::Index*>(&index));
    if (auto pre = dynamic_cast<const faiss::IndexPreTransform*>(&index)) {
        return keep(*pre, copy_of(*inner));
    }
    if (auto map = dynamic_cast<const faiss::IndexIDMap2*>(&index)) {
        return keep(*map, copy_of(*inner));
    }
    if (auto map = dynamic_cast<const faiss::IndexIDMap*>(&index)) {
        return keep(*map, copy_of(*inner));
    }
    if (typeid(index) == typeid(faiss::IndexRefine) ||
        typeid(index) == typeid(faiss::IndexRefineFlat)) {
        return keep(
                dynamic_cast<const faiss::IndexRefine&>(index),
                copy_of(*inner));
    }
    FAISS_THROW_FMT(
            "write_index: a %s around codes about the means of cells, expected "
            "an IndexPreTransform, IndexIDMap or IndexRefine",
            type_name(index).c_str());
}

} // namespace faiss_ext
