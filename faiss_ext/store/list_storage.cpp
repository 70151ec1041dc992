#include "faiss_ext/store/list_storage.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <bit>
#include <cerrno>
#include <cstring>
#include <memory>
#include <typeinfo>
#include <utility>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/invlists/OnDiskInvertedLists.h>

#include "faiss_ext/coarse/coarse.h"

namespace faiss_ext {

using faiss::InvertedLists;

void decode_codes(
        const faiss::IndexIVF& ivf,
        size_t list,
        size_t n,
        const uint8_t* codes,
        float* out) {
    if (n == 0) {
        return;
    }
    bool by_residual = false;
    if (dynamic_cast<const faiss::IndexIVFFlat*>(&ivf)) {
        memcpy(out, codes, n * ivf.code_size);
    } else if (auto pq = dynamic_cast<const faiss::IndexIVFPQ*>(&ivf)) {
        for (size_t j = 0; j < n; j++) {
            pq->pq.decode(codes + j * ivf.code_size, out + j * ivf.d);
        }
        by_residual = pq->by_residual;
    } else {
        auto sq = dynamic_cast<const faiss::IndexIVFScalarQuantizer*>(&ivf);
        FAISS_THROW_IF_NOT_MSG(
                sq, "expected an index with flat, PQ or SQ codes");
        if (n == 1) { // FAISS's starts threads
            const std::unique_ptr<faiss::ScalarQuantizer::SQuantizer> quantizer(
                    sq->sq.select_quantizer());
            quantizer->decode_vector(codes, out);
        } else {
            sq->sq.decode(codes, out, n);
        }
        by_residual = sq->by_residual;
    }
    if (by_residual) {
        std::vector<float> mean(ivf.d);
        ivf.quantizer->reconstruct(list, mean.data());
        for (size_t j = 0; j < n; j++) {
            for (size_t l = 0; l < mean.size(); l++) {
                out[j * ivf.d + l] += mean[l];
            }
        }
    }
}

void decode_list(
        const faiss::IndexIVF& ivf, size_t list, std::vector<float>& out) {
    const size_t n = ivf.invlists->list_size(list);
    out.resize(n * ivf.d);
    InvertedLists::ScopedCodes codes(ivf.invlists, list);
    decode_codes(ivf, list, n, codes.get(), out.data());
}

std::vector<float> quantizer_means(const faiss::IndexIVF& ivf) {
    std::vector<float> means(ivf.nlist * ivf.d);
    ivf.quantizer->reconstruct_n(0, ivf.nlist, means.data());
    return means;
}

void check_same_encoding(
        const char* call,
        const faiss::IndexIVF& from,
        const faiss::IndexIVF& to) {
    FAISS_THROW_IF_NOT_FMT(
            from.d == to.d && from.nlist == to.nlist &&
                    from.code_size == to.code_size,
            "%s: d = %d, nlist = %zu, code_size = %zu, expected %d, %zu, %zu "
            "of the index that the entries go to",
            call,
            int(from.d),
            size_t(from.nlist),
            size_t(from.code_size),
            int(to.d),
            size_t(to.nlist),
            size_t(to.code_size));
    FAISS_THROW_IF_NOT_FMT(
            from.metric_type == to.metric_type,
            "%s: metric %d, expected %d",
            call,
            int(from.metric_type),
            int(to.metric_type));
    if (to.quantizer && to.quantizer != from.quantizer) { // FAISS needs none
        FAISS_THROW_IF_NOT_FMT(
                size_t(to.quantizer->ntotal) == to.nlist,
                "%s: quantizer: %zd means, expected nlist = %zu",
                call,
                ssize_t(to.quantizer->ntotal),
                size_t(to.nlist));
        FAISS_THROW_IF_NOT_FMT(
                quantizer_means(from) == quantizer_means(to),
                "%s: the means differ",
                call);
    }
    bool same = true;
    auto pq = dynamic_cast<const faiss::IndexIVFPQ*>(&from);
    auto to_pq = dynamic_cast<const faiss::IndexIVFPQ*>(&to);
    if (pq && to_pq) {
        same = pq->by_residual == to_pq->by_residual &&
                pq->pq.centroids == to_pq->pq.centroids;
    }
    auto sq = dynamic_cast<const faiss::IndexIVFScalarQuantizer*>(&from);
    auto to_sq = dynamic_cast<const faiss::IndexIVFScalarQuantizer*>(&to);
    if (sq && to_sq) {
        same = sq->by_residual == to_sq->by_residual &&
                sq->sq.qtype == to_sq->sq.qtype &&
                sq->sq.trained == to_sq->sq.trained;
    }
    FAISS_THROW_IF_NOT_FMT(
            same && !pq == !to_pq && !sq == !to_sq,
            "%s: the quantizers of residuals differ",
            call);
}

void check_cells_kept(const faiss::IndexIVF& ivf, const IVFGMM& gmm) {
    const PairCells& cells = gmm.cells;
    FAISS_THROW_IF_NOT_MSG(
            cells.empty() ? has_vectors(ivf) : !cells.codes.empty(),
            "cells: expected those that the index was filled with, codes and "
            "all");
}

MeansView::MeansView(const faiss::IndexIVF& ivf)
        : MeansView(*ivf.quantizer, ivf.nlist) {}

MeansView::MeansView(const faiss::Index& quantizer, size_t nlist)
        : means(means_in_memory(quantizer)) {
    if (!means) {
        copy.resize(nlist * quantizer.d);
        quantizer.reconstruct_n(0, nlist, copy.data());
        means = copy.data();
    }
}

bool is_primary(const IVFGMM& gmm, size_t list, size_t offset) {
    if (gmm.max_assign == 1 || gmm.earlier_lists.empty()) {
        return true;
    }
    const size_t at = offset * (gmm.max_assign - 1);
    return at >= gmm.earlier_lists[list].size() ||
            gmm.earlier_lists[list][at] < 0;
}

size_t known_size(GMMIndexRef index, size_t list) {
    const IVFGMM& gmm = index.gmm;
    return !gmm.cells.empty()    ? gmm.cells.list_size(list)
            : gmm.max_assign > 1 ? gmm.earlier_lists.empty()
                    ? 0
                    : gmm.earlier_lists[list].size() / (gmm.max_assign - 1)
                                 : index.ivf.invlists->list_size(list);
}

bool is_at(const faiss::IndexIVF& ivf, idx_t place, idx_t id) {
    const size_t list = faiss::lo_listno(place), at = faiss::lo_offset(place);
    return has_entry(ivf, list, at) &&
            ivf.invlists->get_single_id(list, at) == id;
}

void check_not_shortened(size_t list, size_t n, size_t known, bool mended) {
    FAISS_THROW_IF_NOT_FMT(
            n >= known,
            "list %zu has %zu entries, expected at least %zu: an index with "
            "cells or copies loses none but by its own functions (%s)",
            list,
            n,
            known,
            mended ? "optimize() makes the cells anew"
                   : "reset() it and add its vectors anew");
}

void check_all_coded(size_t list, size_t n, size_t known) {
    check_not_shortened(list, n, known, false);
    FAISS_THROW_IF_NOT_FMT(
            n == known,
            "list %zu has %zu entries, expected %zu: what FAISS's own "
            "functions add has no codes",
            list,
            n,
            known);
}

void shorten_list(faiss::InvertedLists& lists, size_t list, size_t n) noexcept {
    if (lists.list_size(list) <= n) {
        return;
    }
    if (auto disk = dynamic_cast<faiss::OnDiskInvertedLists*>(&lists)) {
        disk->lists[list].size = n;
    } else {
        lists.resize(list, n);
    }
}

/// Has the file system keep room for bytes of a mapped file: writes to a file
/// with holes on a full disk end in a signal.
static void reserve_on_device(
        const faiss::OnDiskInvertedLists& lists, size_t offset, size_t bytes) {
    const int fd = open(lists.filename.c_str(), O_RDWR | O_CLOEXEC);
    const int error =
            fd < 0 ? errno : posix_fallocate(fd, off_t(offset), off_t(bytes));
    if (fd >= 0) {
        close(fd);
    }
    FAISS_THROW_IF_NOT_FMT(
            error == 0,
            "\"%s\": no room for a list of %zu bytes (%s)",
            lists.filename.c_str(),
            bytes,
            std::strerror(error));
}

/// The same for entries that a list has places for: a copy of the file may have
/// holes where no entry has been.
static void reserve_entries(
        const faiss::OnDiskInvertedLists& lists,
        const faiss::OnDiskOneList& l,
        size_t n) {
    constexpr size_t kPage = 4096; // of which the last entry has all
    const auto reserve = [&](size_t begin, size_t size) {
        const size_t from = begin + l.size * size, end = begin + n * size;
        if (l.size == 0 || (from - 1) / kPage != (end - 1) / kPage) {
            reserve_on_device(lists, from, end - from);
        }
    };
    if (n > l.size) {
        reserve(l.offset, lists.code_size);
        reserve(l.offset + l.capacity * lists.code_size, sizeof(idx_t));
    }
}

void lengthen_list(faiss::InvertedLists& lists, size_t list, size_t n) {
    auto disk = dynamic_cast<faiss::OnDiskInvertedLists*>(&lists);
    if (!disk) {
        lists.resize(list, n);
        return;
    }
    faiss::OnDiskOneList& l = disk->lists[list];
    if (n <= l.capacity) {
        reserve_entries(*disk, l, n);
        l.size = n;
        return;
    }
    const size_t entry = lists.code_size + sizeof(idx_t);
    faiss::OnDiskOneList longer;
    longer.size = n;
    longer.capacity = std::bit_ceil(n);
    longer.offset = disk->allocate_slot(longer.capacity * entry);
    try {
        reserve_on_device(*disk, longer.offset, longer.capacity * entry);
    } catch (...) {
        disk->free_slot(longer.offset, longer.capacity * entry);
        throw;
    }
    if (l.size > 0) {
        const uint8_t* codes = disk->get_codes(list);
        const idx_t* ids = disk->get_ids(list);
        uint8_t* to = disk->ptr + longer.offset;
        std::copy_n(codes, l.size * lists.code_size, to);
        memcpy(to + longer.capacity * lists.code_size,
               ids,
               l.size * sizeof(idx_t));
    }
    const faiss::OnDiskOneList before = std::exchange(l, longer);
    disk->free_slot(before.offset, before.capacity * entry); // none if 0
}

idx_t* map_slot(faiss::DirectMap& map, idx_t id) {
    if (map.type == faiss::DirectMap::Array) {
        return id >= 0 && size_t(id) < map.array.size() ? &map.array[id]
                                                        : nullptr;
    }
    const auto found = map.hashtable.find(id);
    return found != map.hashtable.end() ? &found->second : nullptr;
}

idx_t mapped_place(const faiss::DirectMap& map, idx_t id) {
    const idx_t* slot = map_slot(const_cast<faiss::DirectMap&>(map), id);
    return slot ? *slot : -1;
}

void prefetch_slot(const faiss::DirectMap& map, idx_t id) noexcept {
    const auto& table = map.hashtable;
    if (!table.empty()) {
        const size_t bucket = table.bucket(id);
        const auto first = table.begin(bucket);
        if (first != table.end(bucket)) {
            __builtin_prefetch(&*first);
        }
    }
}

ListEntries::ListEntries(GMMIndexRef index_in, size_t list_in)
        : index(index_in), list(list_in), code_size(index_in.ivf.code_size) {
    InvertedLists* lists = index.ivf.invlists;
    if (typeid(*lists) == typeid(faiss::ArrayInvertedLists)) {
        codes = const_cast<uint8_t*>(lists->get_codes(list));
        ids = const_cast<idx_t*>(lists->get_ids(list));
    }
}

idx_t ListEntries::id(size_t entry) const noexcept {
    return ids ? ids[entry] : index.ivf.invlists->get_single_id(list, entry);
}

void ListEntries::copy(size_t from, size_t to) noexcept {
    if (ids) {
        if (code_size > 0) {
            memcpy(codes + to * code_size, codes + from * code_size, code_size);
        }
        ids[to] = ids[from];
    } else {
        InvertedLists* lists = index.ivf.invlists;
        InvertedLists::ScopedCodes code(lists, list, from);
        lists->update_entry(list, to, id(from), code.get());
    }
}

void ListEntries::follow(idx_t id, size_t from, size_t to) noexcept {
    if (!index.ivf.direct_map.no()) {
        // Another list, in another thread, may get an entry of the same id,
        // which is then the one that the map knows.
        if (idx_t* slot = map_slot(index.ivf.direct_map, id)) {
            const std::atomic_ref<idx_t> place(*slot);
            idx_t here = faiss::lo_build(list, from);
            if (place.load(std::memory_order_relaxed) == here) {
                place.compare_exchange_strong(
                        here,
                        faiss::lo_build(list, to),
                        std::memory_order_relaxed);
            }
        }
    }
}

void ListEntries::follow_moves() noexcept {
    for (size_t i = 0; n_moves > 1 && i < n_moves; i++) {
        prefetch_slot(index.ivf.direct_map, moves[i].id);
    }
    for (size_t i = 0; i < n_moves; i++) {
        follow(moves[i].id, moves[i].from, moves[i].to);
    }
    n_moves = 0;
}

void ListEntries::move(size_t from, size_t to) noexcept {
    copy(from, to);
    if (leaving && leaving[from / 64] >> from % 64 & 1) {
        leaving[from / 64] ^= uint64_t(1) << from % 64;
        leaving[to / 64] |= uint64_t(1) << to % 64;
    }
    if (!index.ivf.direct_map.no()) {
        if (n_moves == kMovesTogether) {
            follow_moves();
        }
        moves[n_moves++] = {id(to), uint32_t(from), uint32_t(to)};
    }
    if (!index.gmm.cells.empty()) {
        index.gmm.cells.codes.move(list, from, to);
    }
}

void ListEntries::move_run(size_t from, size_t n, size_t to) noexcept {
    if (!ids || leaving || !index.ivf.direct_map.no()) {
        for (size_t j = 0; j < n; j++) {
            move(from + j, to + j);
        }
        return;
    }
    if (code_size > 0) {
        memcpy(codes + to * code_size, codes + from * code_size, n * code_size);
    }
    std::copy_n(ids + from, n, ids + to);
    if (!index.gmm.cells.empty()) {
        index.gmm.cells.codes.move_run(list, from, n, to);
    }
}

void ListEntries::prefetch(size_t entry) const noexcept {
    if (ids) {
        if (code_size > 0) { // every line of it
            const uint8_t* code = codes + entry * code_size;
            for (size_t b = 0; b < code_size; b += 64) {
                __builtin_prefetch(code + b, 1);
            }
            __builtin_prefetch(code + code_size - 1, 1);
        }
        __builtin_prefetch(ids + entry, 1);
    }
    if (!index.gmm.cells.empty()) {
        index.gmm.cells.codes.prefetch(list, entry);
    }
}

void ListEntries::set(size_t entry, idx_t id, const uint8_t* code) noexcept {
    if (ids) {
        if (code_size > 0) {
            memcpy(codes + entry * code_size, code, code_size);
        }
        ids[entry] = id;
    } else {
        index.ivf.invlists->update_entry(list, entry, id, code);
    }
}

void ListEntries::enter_in_map(size_t entry, idx_t id) noexcept {
    if (!index.ivf.direct_map.no()) {
        follow_moves(); // an entry of the same id may have been here
        std::atomic_ref<idx_t>(*map_slot(index.ivf.direct_map, id))
                .store(faiss::lo_build(list, entry), std::memory_order_relaxed);
    }
}

void ListEntries::leave_map(size_t entry) noexcept {
    auto& map = index.ivf.direct_map;
    if (map.type == faiss::DirectMap::Hashtable) {
        follow_moves();
        const auto found = map.hashtable.find(id(entry));
        if (found != map.hashtable.end() &&
            found->second == idx_t(faiss::lo_build(list, entry))) {
            map.hashtable.erase(found);
        }
    }
}

void ListEntries::permute(
        std::vector<uint32_t>& order, uint8_t* spare) noexcept {
    follow_moves();
    for (size_t p = 0; p < order.size(); p++) {
        if (order[p] == p) {
            continue;
        }
        // a cycle: p's own entry waits until its place is free
        const idx_t waiting = id(p);
        {
            InvertedLists::ScopedCodes code(index.ivf.invlists, list, p);
            memcpy(spare, code.get(), code_size);
        }
        size_t hole = p;
        while (order[hole] != p) {
            const size_t from = order[hole];
            copy(from, hole);
            follow(id(hole), from, hole);
            order[hole] = uint32_t(hole);
            hole = from;
        }
        set(hole, waiting, spare);
        follow(waiting, p, hole);
        order[hole] = uint32_t(hole);
    }
}

} // namespace faiss_ext
