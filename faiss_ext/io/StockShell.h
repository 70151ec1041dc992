#pragma once

#include <memory>
#include <vector>

#include <faiss/Index.h>

namespace faiss_ext {

/** What FAISS can write of an index: the index itself, or, where there is an
 * IndexIVFRaBitQGMM inside, shallow copies of what is around it, about an
 * IndexIVFFlat of its quantizer and settings whose lists are empty.
 *
 * Throws FaissException where such an index is in what we cannot copy.
 */
class StockShell {
public:
    /// @param index  must outlive *this, and not change meanwhile
    explicit StockShell(const faiss::Index& index);

    const faiss::Index* index() const {
        return root;
    }
    bool is_shell() const {
        return !owned.empty();
    }

private:
    const faiss::Index* copy_of(const faiss::Index& index);
    template <class Wrapper>
    const faiss::Index* keep(const Wrapper& wrapper, const faiss::Index* inner);

    std::vector<std::unique_ptr<faiss::Index>> owned;
    const faiss::Index* root;
};

} // namespace faiss_ext
