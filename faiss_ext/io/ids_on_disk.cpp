#include "faiss_ext/io/ids_on_disk.h"

#include <faiss/impl/FaissAssert.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include "faiss_ext/impl/faiss_compat.h"
#include "faiss_ext/io/Checksum.h"

namespace faiss_ext {

namespace {

uint64_t checksum_of_ids(const faiss::InvertedLists& lists, size_t list) {
    Checksum out;
    const size_t n = lists.list_size(list);
    if (n > 0) {
        faiss::InvertedLists::ScopedIds ids(&lists, list);
        out.add(ids.get(), n * sizeof(idx_t));
    }
    return out.value();
}

} // namespace

std::vector<uint64_t> checksums_of_ids_on_disk(const faiss::IndexIVF& ivf) {
    std::vector<uint64_t> out;
    if (dynamic_cast<const faiss::OnDiskInvertedLists*>(ivf.invlists)) {
        for (size_t i = 0; i < ivf.nlist; i++) {
            out.push_back(checksum_of_ids(*ivf.invlists, i));
        }
    }
    return out;
}

void check_ids_on_disk(
        const faiss::IndexIVF& ivf, const std::vector<uint64_t>& checksums) {
    const auto* lists =
            dynamic_cast<const faiss::OnDiskInvertedLists*>(ivf.invlists);
    for (size_t i = 0; lists && i < checksums.size(); i++) {
        FAISS_THROW_IF_NOT_FMT(
                checksum_of_ids(*lists, i) == checksums[i],
                "read_index: list %zu in \"%s\" has other ids than when this "
                "index was written, expected write_index after the last change "
                "(faiss::read_index opens the file, and swap_to_gmm makes a "
                "new mixture)",
                i,
                lists->filename.c_str());
    }
}

} // namespace faiss_ext
