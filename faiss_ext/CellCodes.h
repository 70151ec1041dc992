#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "faiss_ext/codes/CodeBlocks.h"
#include "faiss_ext/codes/Rotation.h"
#include "faiss_ext/codes/kernels.h"

namespace gmm {
struct PackedMeans;
}

namespace faiss_ext {

/** Codes of 1, 2 or 4 bits a dimension about the means of cells.
 *
 * Let P be a random rotation, m the mean of the cell of x (PairCells) and c the
 * centre of all means. The residual r = P (x - m) is coded as D levels o, and
 * S = |r|^2 / <r, o> makes S <q, o> an unbiased estimate of <q, r> for a query
 * q in a direction that the code knows nothing of (RaBitQ, arXiv 2405.12497,
 * equation 12; arXiv 2409.09913 for several bits). So
 *
 *     |q - x|^2 ~ |q - m|^2 + A + B <P (q - c), o>,
 *     A = |r|^2 + 2 S <P (m - c), o>,    B = -2 S,
 *
 * where |q - m|^2 follows from the query's distances to the means and costs no
 * inner product: one table of P (q - c) serves all cells of all lists.
 *
 * METRIC_INNER_PRODUCT (`similarity`): cells and codes are of directions
 * u = x / |x|, and c = 0:
 *
 *     -q.x ~ A (-q.m) + B <P q, o>,    A = |x|,    B = -|x| S.
 *
 * The error of the estimate of <P (q - m), o> is normal, of standard deviation
 * `error` |q - m| (|q| for inner products).
 *
 * Memory: shape.entry_bytes() an entry, in blocks of 16 entries in the order
 * of the list: the bytes of their columns group by group, then 16 A, 16 B.
 * Blocks may be mapped from a file.
 */
struct CellCodes {
    CodeShape shape;           ///< bits = 0: there are no codes
    bool similarity = false;   ///< METRIC_INNER_PRODUCT; false: METRIC_L2
    std::vector<float> centre; ///< c, size d; zeros for similarity
    std::vector<float> rotated_means; ///< P (mu_i - c), size nlist * d
    /// mu_i - c in the order that products read; not rotated, since a rotation
    /// rounds.
    std::shared_ptr<const gmm::PackedMeans> packed_means;
    /// |mu_i - c|^2, size nlist; zeros for similarity
    std::vector<float> mean_norms;
    float error = 0; ///< see above; that of normal residuals until set_error()
    std::vector<CodeBlocks> blocks; ///< size nlist
    Rotation rotation;

    bool empty() const {
        return shape.bits == 0;
    }

    /// Throws FaissException unless bits is 1, 2 or 4.
    static void check_bits(int bits);

    /// Whether a code of d * bits bits is no longer than 262,128, the longest.
    static bool fits(size_t d, int bits);
    /// Throws FaissException as check_bits, and unless the code fits.
    static void check_fits(size_t d, int bits);

    /// Bits a dimension unless one asks for others: 4 below 32 dimensions, 2
    /// below 256, then 1 (bench/NOTES.md).
    static int default_bits(size_t d);

    /** Prepares codes about these means, without entries. Throws as
     * check_fits.
     *
     * @param means  size nlist * d
     */
    void
    init(size_t nlist, size_t d, int bits, const float* means, bool similarity);

    /** Encodes vectors of one list into records, as set() takes them. Time
     * O(n d log d).
     *
     * @param a         PairCells::a of the list
     * @param partners  PairCells::partners of the list
     * @param x         vectors of d values; directions for similarity
     * @param rows      their n rows in x, or nullptr: the first n
     * @param norms     size n: |x| before x was made a direction; or nullptr
     * @param cell      of each vector, size n
     * @param out       size n * shape.entry_bytes()
     * @return          the sum of squared errors of the records, for set_error
     */
    double encode(
            size_t list,
            float a,
            const int32_t* partners,
            size_t n,
            const float* x,
            const uint32_t* rows,
            const float* norms,
            const uint16_t* cell,
            uint8_t* out) const;

    /// The mean that a code is about: (1 - a) mu_list + a mu_partner.
    struct About {
        size_t list;
        size_t partner; ///< a list
        float a;        ///< PairCells::a of `list`
    };

    /** The same for vectors of any lists.
     *
     * @param x      x - c, size n * d
     * @param norms  as for encode()
     * @param about  size n
     * @param out    size n * shape.entry_bytes()
     */
    void encode_centred(
            size_t n,
            const float* x,
            const float* norms,
            const About* about,
            uint8_t* out) const;

    /// Sets `error` by the sums that encode() returned for n entries in all, to
    /// no less than half of that of normal residuals.
    void set_error(const std::vector<double>& squared, size_t n);

    /** The vector nearest to what a record of a list says, m + (1 - e) S P' o
     * (times A for similarity). S makes <q, o> unbiased, but is too long for an
     * approximation of r: 1 - e = <r, o>^2 / |r|^2 |o|^2, taken from `error`.
     *
     * @param a        PairCells::a of the list
     * @param partner  of the entry's cell, a list
     * @param means    of all lists, size nlist * d
     * @param record   size shape.entry_bytes()
     * @param out      size d
     */
    void decode(
            size_t list,
            float a,
            size_t partner,
            const float* means,
            const uint8_t* record,
            float* out) const;

    /// Makes room for n entries in a list; new ones have no code until set().
    /// Throws bad_alloc with nothing changed; never to fewer entries.
    void resize(size_t list, size_t n);
    /// Writes and reads the record of an entry, shape.entry_bytes() bytes.
    void set(size_t list, size_t entry, const uint8_t* record) noexcept;
    void get(size_t list, size_t entry, uint8_t* record) const noexcept;
    /// Fetches into the cache what move() will read or write of an entry.
    void prefetch(size_t list, size_t entry) const noexcept;
    /// Copies the code of one entry over that of another.
    void move(size_t list, size_t from, size_t to) noexcept;
    /// The same for n consecutive entries, over n others.
    void move_run(size_t list, size_t from, size_t n, size_t to) noexcept;

    /// Removes all entries; keeps what init() made.
    void clear_entries();

private:
    /// Memory for encode_rotated().
    struct Room;

    /// Encodes n <= kEncodedTogether vectors, which room.rotated holds with
    /// their room.about; returns what encode() does.
    double encode_rotated(
            size_t n, const float* norms, Room& room, uint8_t* out) const;
};

} // namespace faiss_ext
