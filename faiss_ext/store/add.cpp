#include "faiss_ext/store/add.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <unordered_map>

#include <faiss/IndexScalarQuantizer.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/IDSelector.h>

#include "ParallelFor.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/store/copies.h"
#include "faiss_ext/store/edit.h"
#include "faiss_ext/store/find_entries.h"
#include "faiss_ext/store/maintain.h"
#include "faiss_ext/store/strays.h"

namespace faiss_ext {

namespace {

/// Fewer vectors are not worth waking threads for.
constexpr size_t kParallelRows = 64;

/// The rows that have a list, by list, in their order within each.
std::vector<uint32_t> rows_by_list(size_t n, const idx_t* lists, size_t nlist) {
    std::vector<uint32_t> rows;
    rows.reserve(n);
    if (n < nlist / 4) {
        for (size_t r = 0; r < n; r++) {
            if (lists[r] >= 0) {
                rows.push_back(uint32_t(r));
            }
        }
        std::sort(rows.begin(), rows.end(), [&](uint32_t p, uint32_t q) {
            return lists[p] != lists[q] ? lists[p] < lists[q] : p < q;
        });
        return rows;
    }
    std::vector<uint32_t> next(nlist + 1);
    for (size_t r = 0; r < n; r++) {
        next[lists[r] + 1]++; // those without a list first
    }
    const size_t nowhere = next[0];
    std::partial_sum(next.begin(), next.end(), next.begin());
    rows.resize(n - nowhere);
    for (size_t r = 0; r < n; r++) {
        if (lists[r] >= 0) {
            rows[next[lists[r]]++ - nowhere] = uint32_t(r);
        }
    }
    return rows;
}

/// The list of each vector, and what it is there as far as that is known.
struct Nearest {
    std::vector<idx_t> lists;
    KnownCells cells;

    Nearest() = default;
    Nearest(GMMIndexRef index, size_t n, const float* x) : lists(n) {
        nearest_lists(index.ivf, index.gmm.cells, n, x, lists.data(), cells);
    }
};

/// Vectors on their way into lists, and what they are there.
class Block {
public:
    /// @param lists    of each vector, or -1
    /// @param nearest  what is known of their cells
    Block(GMMIndexRef index,
          size_t n,
          const float* x,
          const idx_t* ids,
          idx_t first_id,
          const idx_t* lists,
          const Nearest& nearest)
            : index(index), entry_lists(lists), nearest(nearest), n_entries(n),
              x(x), ids(ids), first_id(first_id) {
        if (index.gmm.max_assign > 1 && n > 0) {
            with_copies(n, lists);
        }
    }

    /// Adds to the edit's arrivals; *this must outlive it.
    void enter(Edit& edit);

private:
    void with_copies(size_t n, const idx_t* lists);

    GMMIndexRef index;
    const idx_t* entry_lists;
    const Nearest& nearest;
    size_t n_entries;
    const float* x; ///< of the entries
    const idx_t* ids;
    idx_t first_id;
    std::vector<uint32_t> rows; ///< by list
    std::vector<uint8_t> codes;
    // max_assign > 1: the vectors, then their copies
    std::optional<Assignment> copies;
    std::vector<idx_t> own_lists, own_ids;
    std::vector<float> own_x;
};

void Block::with_copies(size_t n, const idx_t* lists) {
    const size_t d = index.ivf.d;
    copies = assign_copies(index, n, x, lists, nearest.lists.empty());
    own_lists = copies->homes;
    own_lists.insert(
            own_lists.end(),
            copies->copy_lists.begin(),
            copies->copy_lists.end());
    own_x = copies->gather(d, x);
    own_x.insert(own_x.begin(), x, x + n * d);
    for (size_t r = 0; r < n; r++) {
        own_ids.push_back(ids ? ids[r] : first_id + r);
    }
    for (uint32_t row : copies->copied) {
        own_ids.push_back(own_ids[row]);
    }
    entry_lists = own_lists.data();
    n_entries = own_lists.size();
    x = own_x.data();
    ids = own_ids.data();
    first_id = 0;
}

/// Of values beyond fp16 an SQfp16 makes infinities, by which no cell is found.
void check_halves(
        const faiss::IndexIVF& ivf,
        size_t n,
        const float* x,
        const uint8_t* codes) {
    auto sq = dynamic_cast<const faiss::IndexIVFScalarQuantizer*>(&ivf);
    if (!sq || sq->sq.qtype != faiss::ScalarQuantizer::QT_fp16) {
        return;
    }
    constexpr uint16_t kExponent = 0x7c00; // infinities and NaN
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < size_t(ivf.d); j++) {
            uint16_t half;
            memcpy(&half, codes + i * ivf.code_size + 2 * j, sizeof(half));
            FAISS_THROW_IF_NOT_FMT(
                    (half & kExponent) != kExponent,
                    "x: a row holds %g in dimension %zu, expected at most "
                    "65504 (from its list's mean), the largest of SQfp16",
                    x[i * ivf.d + j],
                    j);
        }
    }
}

void Block::enter(Edit& edit) {
    const faiss::IndexIVF& ivf = index.ivf;
    rows = rows_by_list(n_entries, entry_lists, ivf.nlist);
    edit.arrivals.reserve(std::min(rows.size(), ivf.nlist));
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(x);
    if (has_vectors(ivf) && !dynamic_cast<const faiss::IndexIVFFlat*>(&ivf)) {
        codes.resize(n_entries * ivf.code_size);
        ivf.encode_vectors(n_entries, x, entry_lists, codes.data());
        check_halves(ivf, n_entries, x, codes.data());
        bytes = codes.data();
    }
    const size_t width = index.gmm.max_assign - 1;
    const size_t n_primary = n_entries - (copies ? copies->copied.size() : 0);
    for (size_t begin = 0; begin < rows.size();) {
        const idx_t list = entry_lists[rows[begin]];
        Arrivals& a = edit.arrivals.emplace_back();
        a.list = list;
        size_t end = begin;
        while (end < rows.size() && entry_lists[rows[end]] == list) {
            end++;
        }
        a.n = end - begin;
        a.rows = rows.data() + begin;
        a.codes = bytes;
        a.ids = ids;
        a.add_id = ids ? 0 : first_id;
        for (size_t r = begin; copies && r < end; r++) {
            const size_t row = rows[r];
            if (row < n_primary) {
                a.earlier.insert(a.earlier.end(), width, -1);
            } else {
                const auto from = copies->copy_earlier.begin() +
                        (row - n_primary) * width;
                a.earlier.insert(a.earlier.end(), from, from + width);
            }
        }
        begin = end;
    }
    bool known = !nearest.cells.empty();
    for (const Arrivals& a : edit.arrivals) {
        if (adopt_strays(index, a.list)) {
            known = false; // its cells may have turned
        }
    }
    if (index.gmm.cells.empty()) {
        return;
    }
    if (known) {
        for (Arrivals& a : edit.arrivals) {
            a.place(nearest.cells);
        }
        return;
    }
    const MeansView means(ivf);
    gmm::parallel_for(
            edit.arrivals.size(),
            [&](size_t i) { edit.arrivals[i].place(index, x, means.data()); },
            n_entries >= kParallelRows);
}

/// Of entries (list, entry), those that are vectors and not copies.
size_t count_primary(const IVFGMM& gmm, const std::vector<uint64_t>& places) {
    return std::count_if(places.begin(), places.end(), [&](uint64_t place) {
        return is_primary(
                gmm, faiss::lo_listno(place), faiss::lo_offset(place));
    });
}

void add_block(
        GMMIndexRef index,
        size_t n,
        const float* x,
        const idx_t* ids,
        const idx_t* homes) {
    Nearest nearest;
    if (!homes) {
        nearest = Nearest(index, n, x);
        homes = nearest.lists.data();
    }
    Edit edit(index);
    Block block(index, n, x, ids, index.ivf.ntotal, homes, nearest);
    block.enter(edit);
    edit.array_size = index.ivf.ntotal + n;
    edit.prepare();
    edit.commit();
    index.ivf.ntotal += n;
    refit_grown_lists(index, edit.arrivals, n);
}

} // namespace

void add_vectors(
        GMMIndexRef index,
        idx_t n,
        const float* x,
        const idx_t* ids,
        const idx_t* homes) {
    faiss::IndexIVF& ivf = index.ivf;
    check_rows("x", n, ivf.d, x);
    check_trained(ivf);
    check_writable(ivf);
    check_storable("x", n, ivf.d, x);
    for (idx_t i = 0; homes && i < n; i++) {
        FAISS_THROW_IF_NOT_FMT(
                homes[i] >= -1 && homes[i] < idx_t(ivf.nlist),
                "coarse_idx[%zd] = %zd, expected -1 or a list, of %zd",
                size_t(i),
                size_t(homes[i]),
                ivf.nlist);
    }
    ivf.direct_map.check_can_add(ids);
    if (ivf.ntotal == 0) {
        begin_anew(index);
    }
    FAISS_THROW_IF_NOT_FMT(
            index.gmm.max_assign == 1 || index.gmm.cells.empty(),
            "max_assign = %zd, expected 1 in an index with cells "
            "(cells_per_list = 1 leaves them out)",
            index.gmm.max_assign);
    check_assign(ivf, index.gmm);
    Growth growth(index, "add");
    try {
        for (idx_t i = 0; i < n; i += kAddBlock) {
            check_interrupt();
            const size_t nb = std::min<idx_t>(kAddBlock, n - i);
            add_block(
                    index,
                    nb,
                    x + i * ivf.d,
                    ids ? ids + i : nullptr,
                    homes ? homes + i : nullptr);
        }
    } catch (const std::exception& e) {
        growth.explain(e);
        throw;
    }
    growth.finish();
}

void update_vectors(
        GMMIndexRef index, size_t n, const idx_t* ids, const float* v) {
    std::unordered_map<idx_t, size_t> last; // row of each id, if there are more
    for (size_t r = 0; r < n && n > 1; r++) {
        last[ids[r]] = r;
    }
    if (n > 1 && last.size() < n) {
        const size_t d = index.ivf.d;
        std::vector<idx_t> some_ids;
        std::vector<float> rows;
        for (const auto& [id, row] : last) {
            some_ids.push_back(id);
            rows.insert(rows.end(), v + row * d, v + (row + 1) * d);
        }
        return update_vectors(
                index, some_ids.size(), some_ids.data(), rows.data());
    }
    check_interrupt();
    check_trained(index.ivf);
    check_writable(index.ivf);
    check_assign(index.ivf, index.gmm);
    Edit edit(index);
    edit.ids_stay = true;
    if (index.gmm.max_assign == 1) {
        // of an id's entries, the one that it names
        edit.removed = mapped_entries(index, n, ids);
    } else {
        edit.removed = scan_entries(index, faiss::IDSelectorBatch(n, ids));
        const size_t vectors = count_primary(index.gmm, edit.removed);
        FAISS_THROW_IF_NOT_FMT(
                vectors == n,
                "update_vectors: %zu vectors have these %zu ids, expected one "
                "each: which of the copies are whose is not known",
                vectors,
                n);
    }
    // After what adopts entries, by which cells may turn.
    const Nearest nearest(index, n, v);
    const std::vector<idx_t>& homes = nearest.lists;
    FAISS_THROW_IF_NOT_MSG(
            std::find(homes.begin(), homes.end(), -1) == homes.end(),
            "update_vectors: the quantizer finds no list for a vector");
    Block block(index, n, v, ids, 0, homes.data(), nearest);
    block.enter(edit);
    edit.prepare();
    edit.commit();
    index.gmm.cells.forget(index.ivf.ntotal, n);
    refit_grown_lists(index, edit.arrivals, n);
}

size_t remove_ids(GMMIndexRef index, const faiss::IDSelector& sel) {
    check_writable(index.ivf);
    check_max_assign(index.ivf, index.gmm);
    check_cells_kept(index.ivf, index.gmm);
    Edit edit(index);
    std::optional<std::vector<idx_t>> ids;
    if (!index.ivf.direct_map.no() && map_is_complete(index)) {
        ids = listed_ids(sel, index.ivf.ntotal);
    }
    edit.removed = ids ? mapped_entries(index, ids->size(), ids->data())
                       : scan_entries(index, sel);
    const size_t n = count_primary(index.gmm, edit.removed);
    edit.prepare();
    edit.commit();
    index.gmm.cells.forget(index.ivf.ntotal, n);
    index.ivf.ntotal -= n;
    return n;
}

} // namespace faiss_ext
