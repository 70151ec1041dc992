#include "faiss_ext/io/before_writing.h"

#include <faiss/impl/FaissAssert.h>

#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/io/checks.h"
#include "faiss_ext/store/strays.h"

namespace faiss_ext {

namespace {

/// Takes in what FAISS's own functions appended to the lists, as every call
/// that changes the index does. Where they removed, there is nothing to take.
void adopt_untracked(const faiss::IndexIVF& ivf, const IVFGMM& gmm) {
    if (gmm.max_assign == 0 ||
        (gmm.max_assign == 1) != gmm.earlier_lists.empty() ||
        (gmm.max_assign > 1 && gmm.max_assign != gmm.filled_assign)) {
        return;
    }
    const GMMIndexRef index{
            const_cast<faiss::IndexIVF&>(ivf), const_cast<IVFGMM&>(gmm)};
    for (size_t i = 0; i < ivf.nlist; i++) {
        if (known_size(index, i) > ivf.invlists->list_size(i)) {
            return;
        }
    }
    adopt_strays(index);
}

} // namespace

const faiss::OnDiskInvertedLists* lists_on_disk(const faiss::Index* index) {
    auto ivf = dynamic_cast<const faiss::IndexIVF*>(unwrap(index));
    return ivf ? dynamic_cast<const faiss::OnDiskInvertedLists*>(ivf->invlists)
               : nullptr;
}

bool check_before_writing(const faiss::Index* index) {
    if (const auto* lists = lists_on_disk(index)) {
        FAISS_THROW_IF_NOT_MSG(
                !lists->filename.empty(),
                "write_index: the inverted lists are mapped from the file that "
                "the index was read from; copy that file, or read it without "
                "IO_FLAG_MMAP");
        FAISS_THROW_IF_NOT_MSG(
                lists->totsize > 0,
                "write_index: the inverted lists are on disk and have no file "
                "yet, which FAISS cannot read; add vectors first");
    }
    const faiss::Index* inner = unwrap(index);
    auto ivf = dynamic_cast<const faiss::IndexIVF*>(inner);
    auto gmm = dynamic_cast<const IVFGMM*>(inner);
    auto quantizer =
            dynamic_cast<const IndexGMM*>(ivf ? ivf->quantizer : inner);
    if (!gmm && !quantizer) {
        return false;
    }
    check_stock_part(*index);
    if (gmm) {
        adopt_untracked(*ivf, *gmm);
        check_gmm_part(*ivf, *gmm);
    } else {
        quantizer->policy.validate();
        if (quantizer->is_trained) {
            as_faiss_exception([&] { quantizer->mixture().validate(); });
        }
    }
    return true;
}

} // namespace faiss_ext
