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
 * With P a random rotation, m the mean of x's cell (PairCells) and c the centre
 * of the means, r = P (x - m) is coded as levels o, D of them, and
 * S = |r|^2 / <r, o> makes S <q, o> an unbiased estimate of <q, r> for a query
 * in a direction that the code knows nothing of (RaBitQ, arXiv 2405.12497,
 * equation 12; arXiv 2409.09913 for several bits). So
 *
 *     |q - x|^2 ~ |q - m|^2 + A + B <P (q - c), o>,
 *     A = |r|^2 + 2 S <P (m - c), o>,    B = -2 S,
 *
 * where |q - m|^2 follows from the query's distances to the means and costs no
 * inner product: one table of P (q - c) serves all cells of all lists.
 *
 * METRIC_INNER_PRODUCT: the code of the direction u = x / |x|, cells being of
 * directions, c = 0:
 *
 *     -q.x ~ A (-q.m) + B <P q, o>,    A = |x|,    B = -|x| S.
 *
 * The error of <P (q - m), o> is normal, of standard deviation
 * `error` |q - m| (|q| for inner products).
 *
 * Memory: (groups * 2 + 8) bytes an entry, D rounded up to a multiple of 16 /
 * bits. Entries lie in blocks of 16, by the place that they have in their list:
 * the bytes of their columns group by group, 16 A, 16 B. They may be mapped.
 */
struct CellCodes {
    CodeShape shape; ///< bits = 0: there are no codes
    bool similarity = false;
    std::vector<float> centre;        ///< c, size d; zeros for similarity
    std::vector<float> rotated_means; ///< P (mu_i - c), size nlist * d
    /// mu_i - c in the order that products read; not rotated, which would
    /// round.
    std::shared_ptr<const gmm::PackedMeans> packed_means;
    /// |mu_i - c|^2, size nlist; zeros for similarity
    std::vector<float> mean_norms;
    float error = 0; ///< about what it is for normal residuals, until measured
    std::vector<CodeBlocks> blocks; ///< of each list
    Rotation rotation;

    bool empty() const {
        return shape.bits == 0;
    }

    /// Throws FaissException unless bits is 1, 2 or 4.
    static void check_bits(int bits);

    /// Whether vectors of d dimensions can have codes: up to 262,128 bits.
    static bool fits(size_t d, int bits);
    /// Throws as check_bits, and unless it fits.
    static void check_fits(size_t d, int bits);

    /// The more dimensions, the fewer bits of each: 4 below 32, 2 below 256,
    /// then 1 (bench/NOTES.md).
    static int default_bits(size_t d);

    /** Without entries, for these means. Throws as check_fits.
     *
     * @param means  size nlist * d
     */
    void
    init(size_t nlist, size_t d, int bits, const float* means, bool similarity);

    /** The records of vectors of one list, as set() takes them. Time
     * O(n d log d).
     *
     * @param a         the list's PairCells::a
     * @param partners  the list's
     * @param x         size n * d; directions for similarity
     * @param rows      of x that are meant, or nullptr: the first n
     * @param norms     of the vectors whose directions x are, or nullptr
     * @param cell      of each, size n
     * @param out       size n * shape.entry_bytes()
     * @return          the sum of the squares that `error` is the mean of
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

    /// What a code is about: the mean of a list's cell.
    struct About {
        size_t list;
        size_t partner;
        float a; ///< the list's PairCells::a
    };

    /** The same of vectors x - c of any lists.
     *
     * @param x      size n * d
     * @param about  of each
     */
    void encode_centred(
            size_t n,
            const float* x,
            const float* norms,
            const About* about,
            uint8_t* out) const;

    /// Makes `error` that of n entries, whose sums encode() returned, or half
    /// of what it is for normal residuals if that is more.
    void set_error(const std::vector<double>& squared, size_t n);

    /** The vector that a record says most about, of an entry of one list:
     * m + (1 - e) S P' o, whose e takes from S what makes <q, o> unbiased and
     * an approximation of r too long: 1 - e = <r, o>^2 / |r|^2 |o|^2, on
     * average by `error`. Times A for similarity.
     *
     * @param a        the list's PairCells::a
     * @param partner  of the entry's cell
     * @param means    of all lists, size nlist * d
     * @param out      size d
     */
    void decode(
            size_t list,
            float a,
            size_t partner,
            const float* means,
            const uint8_t* record,
            float* out) const;

    /// Room for n entries; new ones are nowhere until they are set. Throws
    /// bad_alloc, and then nothing has changed; never if they get fewer.
    void resize(size_t list, size_t n);
    void set(size_t list, size_t entry, const uint8_t* record) noexcept;
    void get(size_t list, size_t entry, uint8_t* record) const noexcept;
    /// Asks for what move() will read and write of an entry, soon.
    void prefetch(size_t list, size_t entry) const noexcept;
    /// Copies one entry over another.
    void move(size_t list, size_t from, size_t to) noexcept;
    /// The same of n side by side, over others.
    void move_run(size_t list, size_t from, size_t n, size_t to) noexcept;

    /// No entries; keeps what init() made.
    void clear_entries();

private:
    /// Memory for encode_rotated().
    struct Room;

    /// Of at most kEncodedTogether vectors that are rotated in the room, with
    /// their `about`; returns as encode().
    double encode_rotated(
            size_t n, const float* norms, Room& room, uint8_t* out) const;
};

} // namespace faiss_ext
