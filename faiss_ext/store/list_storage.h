#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include <faiss/IndexIVF.h>

#include "faiss_ext/IndexIVFGMM.h"

namespace faiss_ext {

/// An IndexIVFGMM seen without its codec: the two halves of one object.
struct GMMIndexRef {
    faiss::IndexIVF& ivf;
    IVFGMM& gmm;
};

/// Whether lists hold vectors, or codes by which FAISS knows them; else ids
/// alone (store/codes_alone.h).
inline bool has_vectors(const faiss::IndexIVF& ivf) {
    return ivf.code_size > 0;
}

/// Decodes n codes of a list by the index's codec, wherever they lie; out has
/// size n * d.
void decode_codes(
        const faiss::IndexIVF& ivf,
        size_t list,
        size_t n,
        const uint8_t* codes,
        float* out);

/// The vectors of a list, decoded; size list_size * d.
void decode_list(
        const faiss::IndexIVF& ivf, size_t list, std::vector<float>& out);

/// A copy of the means, size nlist * d.
std::vector<float> quantizer_means(const faiss::IndexIVF& ivf);

/// Throws, naming the call, where codes of one index are not those of the same
/// vectors in the other: other means, or other parameters of the quantizer.
void check_same_encoding(
        const char* call,
        const faiss::IndexIVF& from,
        const faiss::IndexIVF& to);

/// Throws where a search or a change presumes cells that the caller has taken
/// away.
void check_cells_kept(const faiss::IndexIVF& ivf, const IVFGMM& gmm);

/// The means as floats, size nlist * d, copied only where the quantizer does
/// not hold them so.
class MeansView {
public:
    explicit MeansView(const faiss::IndexIVF& ivf);
    /// Of a quantizer of nlist means.
    MeansView(const faiss::Index& quantizer, size_t nlist);
    const float* data() const {
        return means;
    }

private:
    std::vector<float> copy;
    const float* means;
};

/// Whether this entry is the vector itself and not a copy of one whose home
/// is elsewhere.
bool is_primary(const IVFGMM& gmm, size_t list, size_t offset);

/// Cells of a list at least, and of one that nothing is known of yet.
constexpr size_t kCellsAtFirst = 16;

/// Entries of a list that the index has its own data of: all but those that
/// FAISS's functions appended behind its back.
size_t known_size(GMMIndexRef index, size_t list);

/// Whether the index has this list, and the list this entry.
inline bool has_entry(const faiss::IndexIVF& ivf, size_t list, size_t entry) {
    return list < ivf.nlist && entry < ivf.invlists->list_size(list);
}

/// Whether there is an entry at a place (list, entry), and has this id.
bool is_at(const faiss::IndexIVF& ivf, idx_t place, idx_t id);

/// Throws for a list that is shorter than what the index knows of it: FAISS's
/// own functions took entries out behind its back, it cannot say which.
///
/// @param mended  whether optimize() makes anew what is known
void check_not_shortened(size_t list, size_t n, size_t known, bool mended);

/// Throws unless a list of an index of codes alone is as long as what the index
/// knows of it.
void check_all_coded(size_t list, size_t n, size_t known);

/// Makes a list of FAISS's as short as that. One on disk keeps its place there,
/// since to find a shorter one can fail, until it grows.
void shorten_list(faiss::InvertedLists& lists, size_t list, size_t n) noexcept;

/** Makes a list of FAISS's as long as that, n at least its size.
 *
 * Throws FaissException where the disk has no room, and leaves the list as it
 * was. OnDiskInvertedLists::resize takes no notice of that. Nor does it see
 * that a list has more room than n needs; and where the new slot begins at the
 * old one's place it leaves ids where they were, behind the capacity. */
void lengthen_list(faiss::InvertedLists& lists, size_t list, size_t n);

/// Where the direct map says that a vector is, to be read or changed; nullptr
/// if it does not know the id.
idx_t* map_slot(faiss::DirectMap& map, idx_t id);

/// The place (list, entry) of a vector by the direct map; -1 if it names none.
idx_t mapped_place(const faiss::DirectMap& map, idx_t id);

/// Asks for what map_slot() will read in a Hashtable. Several ids wait for
/// memory together, before the first is looked up.
void prefetch_slot(const faiss::DirectMap& map, idx_t id) noexcept;

/** The entries of one list in every place where something is kept of them:
 * FAISS's lists, the payload and the direct map (which follows an entry that
 * it names, before *this ends). Lists must be as long as the places that are
 * written to. */
class ListEntries {
public:
    ListEntries(GMMIndexRef index, size_t list);
    ~ListEntries() {
        follow_moves();
    }
    ListEntries(const ListEntries&) = delete;

    /// Copies an entry to another place, where it then is.
    void move(size_t from, size_t to) noexcept;

    /// The same of n entries side by side, to places that are none of theirs.
    void move_run(size_t from, size_t n, size_t to) noexcept;

    /// Asks for what move() will read and write of a place, soon.
    void prefetch(size_t entry) const noexcept;

    /// Writes an entry, without its payload.
    void set(size_t entry, idx_t id, const uint8_t* code) noexcept;

    idx_t id(size_t entry) const noexcept;

    /// Has the direct map name this entry for this id; the map has a slot.
    void enter_in_map(size_t entry, idx_t id) noexcept;

    /// Takes an id out of a Hashtable if it names this entry.
    void leave_map(size_t entry) noexcept;

    /** Puts the old entry order[p] in place p, for all p < order.size(), which
     * is made the identity. The payload stays.
     *
     * @param spare  code_size bytes
     */
    void permute(std::vector<uint32_t>& order, uint8_t* spare) noexcept;

    /// A bit for each place, set where an entry will be removed; or nullptr.
    /// Bits move with their entries.
    uint64_t* leaving = nullptr;

private:
    void copy(size_t from, size_t to) noexcept;
    void follow(idx_t id, size_t from, size_t to) noexcept;
    /// Has the direct map follow the moves since, in their order.
    void follow_moves() noexcept;

    /// A move that the direct map does not know of yet. Many are looked up
    /// together, since each waits for memory.
    struct Move {
        idx_t id;
        uint32_t from, to;
    };
    static constexpr size_t kMovesTogether = 64;
    Move moves[kMovesTogether];
    size_t n_moves = 0;

    GMMIndexRef index;
    const size_t list, code_size;
    uint8_t* codes = nullptr; ///< of FAISS's plain lists in memory
    idx_t* ids = nullptr;
};

} // namespace faiss_ext
