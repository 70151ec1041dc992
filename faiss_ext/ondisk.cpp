#include "faiss_ext/ondisk.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>

#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/index_io.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include "ParallelFor.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/io/AtomicFileWriter.h"
#include "faiss_ext/ivflib.h"
#include "faiss_ext/store/maintain.h"

namespace faiss_ext {

namespace {

faiss::IndexIVF& ivf_of(faiss::Index* index, const char* what) {
    auto pre = dynamic_cast<faiss::IndexPreTransform*>(index);
    auto ivf = dynamic_cast<faiss::IndexIVF*>(pre ? pre->index : index);
    FAISS_THROW_IF_NOT_FMT(
            ivf,
            "%s: expected an IVF index, alone or in an IndexPreTransform",
            what);
    return *ivf;
}

/// One part's lists, mapped.
struct Part {
    std::unique_ptr<faiss::InvertedLists> lists;
    size_t n = 0;

    Part(const faiss::IndexIVF& whole, const std::string& path) {
        std::unique_ptr<faiss::Index> index;
        try {
            index.reset(read_index(path.c_str(), faiss::IO_FLAG_MMAP));
        } catch (const faiss::FaissException& e) {
            const std::string why = without_place(e.what());
            FAISS_THROW_FMT("%s: %s", path.c_str(), why.c_str());
        }
        faiss::IndexIVF& ivf = ivf_of(index.get(), path.c_str());
        ivf.set_direct_map_type(faiss::DirectMap::NoMap); // what stays has none
        try {
            whole.check_compatible_for_merge(ivf);
        } catch (const faiss::FaissException& e) {
            const std::string why = without_place(e.what());
            FAISS_THROW_FMT(
                    "%s: of another training: %s", path.c_str(), why.c_str());
        }
        n = ivf.ntotal;
        lists.reset(ivf.invlists);
        ivf.own_invlists = false;
        ivf.invlists = nullptr;
    }
};

/// A new file of that size beside `path`, for all of which the file system has
/// room: writes to a mapped file on a full disk end in a signal.
void make_file(const std::string& path, size_t bytes, std::string& name) {
    const int fd = open_new_beside(path, O_RDWR, 0666, name);
    const int error = fd < 0 ? errno
            : bytes > 0      ? posix_fallocate(fd, 0, off_t(bytes))
                             : 0;
    if (fd >= 0) {
        close(fd);
    }
    FAISS_THROW_IF_NOT_FMT(
            error == 0,
            "'%s': a file of %zu bytes cannot be made (%s)",
            path.c_str(),
            bytes,
            std::strerror(error));
}

/// Has the system write a file, or a folder's names, to the device.
void flush(const std::string& path, int flags) {
    const int fd = open(path.c_str(), flags | O_RDONLY | O_CLOEXEC);
    const bool done = fd >= 0 && fsync(fd) == 0;
    const int error = errno;
    if (fd >= 0) {
        close(fd);
    }
    // folders that may not be read, or that nothing can be flushed of
    FAISS_THROW_IF_NOT_FMT(
            done || (flags && (error == EACCES || error == EINVAL)),
            "'%s': cannot be flushed (%s)",
            path.c_str(),
            std::strerror(error));
}

/// Lists of the parts' sizes, filled, in a file beside `path`, whose name is
/// told as soon as there is one.
std::unique_ptr<faiss::OnDiskInvertedLists> write_lists(
        const faiss::IndexIVF& ivf,
        const std::vector<Part>& parts,
        const std::string& path,
        bool shift_ids,
        std::string& name) {
    const size_t nlist = ivf.nlist;
    auto out = std::make_unique<faiss::OnDiskInvertedLists>(
            nlist, ivf.code_size, path.c_str());
    size_t bytes = 0;
    for (size_t i = 0; i < nlist; i++) {
        auto& list = out->lists[i];
        for (const Part& part : parts) {
            list.size += part.lists->list_size(i);
        }
        // Ids, behind the codes, begin at a multiple of their size.
        list.capacity = (list.size + 7) / 8 * 8;
        list.offset = bytes;
        bytes += list.capacity * (ivf.code_size + sizeof(idx_t));
    }
    make_file(path, bytes, name);
    out->filename = name;
    if (bytes > 0) { // nothing cannot be mapped
        out->totsize = bytes;
        out->do_mmap();
    }
    gmm::parallel_for(nlist, [&](size_t i) {
        check_interrupt();
        size_t at = 0;
        idx_t shift = 0;
        for (const Part& part : parts) {
            const size_t n = part.lists->list_size(i);
            if (n > 0) {
                faiss::InvertedLists::ScopedCodes codes(part.lists.get(), i);
                faiss::InvertedLists::ScopedIds ids(part.lists.get(), i);
                std::vector<idx_t> own(ids.get(), ids.get() + n);
                for (idx_t& id : own) {
                    id += shift;
                }
                out->update_entries(i, at, n, own.data(), codes.get());
                at += n;
            }
            shift += shift_ids ? idx_t(part.n) : 0;
        }
    });
    return out;
}

} // namespace

void merge_ondisk(
        faiss::Index* index,
        const std::vector<std::string>& parts,
        const std::string& ivfdata,
        bool shift_ids) {
    faiss::IndexIVF& ivf = ivf_of(index, "index");
    IVFGMM* gmm = extract_gmm(index);
    FAISS_THROW_IF_NOT_FMT(
            ivf.is_trained && ivf.ntotal == 0 && ivf.direct_map.no(),
            "index: %s, ntotal = %zd and %s direct map, expected a trained and "
            "empty index without one",
            ivf.is_trained ? "trained" : "not trained",
            size_t(ivf.ntotal),
            ivf.direct_map.no() ? "no" : "a");
    FAISS_THROW_IF_NOT_FMT(
            !gmm || gmm->max_assign == 1,
            "index: max_assign = %zu, expected 1",
            gmm->max_assign);
    FAISS_THROW_IF_NOT_MSG(
            !gmm || has_vectors(ivf),
            "index: codes alone, expected vectors, which lists on disk hold; "
            "merge_from merges codes");
    std::optional<Growth> growth;
    if (gmm) {
        growth.emplace(GMMIndexRef{ivf, *gmm}, "merge_ondisk");
    }
    std::vector<Part> opened;
    size_t n = 0;
    for (const std::string& path : parts) {
        opened.emplace_back(ivf, path);
        n += opened.back().n;
    }
    FAISS_THROW_IF_NOT_MSG(n > 0, "parts: expected some entries in them");
    std::string partial;
    // Whatever needs memory comes before the file has its name.
    std::string target = ivfdata;
    const int error = follow_links(target);
    FAISS_THROW_IF_NOT_FMT(
            error == 0,
            "ivfdata = '%s': cannot be written (%s)",
            ivfdata.c_str(),
            std::strerror(error));
    const auto parent = std::filesystem::path(target).parent_path();
    const std::string folder = (parent.empty() ? "." : parent).string();
    std::string filename = ivfdata;
    std::unique_ptr<faiss::OnDiskInvertedLists> lists;
    try {
        lists = write_lists(ivf, opened, target, shift_ids, partial);
        flush(partial, 0); // before another has its name
        FAISS_THROW_IF_NOT_FMT(
                std::rename(partial.c_str(), target.c_str()) == 0,
                "ivfdata = '%s': cannot be written (%s)",
                ivfdata.c_str(),
                std::strerror(errno));
    } catch (...) {
        if (!partial.empty()) {
            unlink(partial.c_str());
        }
        throw;
    }
    flush(folder, O_DIRECTORY);
    lists->filename = std::move(filename);
    opened.clear();
    if (gmm) {
        begin_anew({ivf, *gmm});
    }
    ivf.replace_invlists(lists.release(), true);
    ivf.ntotal = index->ntotal = idx_t(n);
    if (growth) {
        growth->finish();
    }
}

} // namespace faiss_ext
