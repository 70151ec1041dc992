#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <faiss/invlists/InvertedLists.h>

#include "faiss_ext/CellCodes.h"
#include "faiss_ext/PairCells.h"
#include "faiss_ext/coarse/QueryCoarse.h"

namespace faiss_ext {

/** Chooses the cells whose codes a query looks at: the nearest ones, by the
 * distance to their mean, without sorting them.
 *
 * Cells go into buckets by their distance; a bucket is chosen or not. Only the
 * cells of the nearest lists have a distance, as many lists as hold what is
 * asked for.
 */
class CellSelector {
public:
    /// Throws FaissException naming a list that is shorter than its cells.
    CellSelector(const PairCells& cells, const faiss::InvertedLists& lists);

    /** Begins a query.
     *
     * @param coarse  started for the query; must stay valid until the next
     * @param forced  of so many nearest lists all cells are wanted, see
     *                bring_forward_forced
     */
    void start(QueryCoarse& coarse, size_t forced = 0);

    /// Scores the cells of the nearest lists until they hold that many entries,
    /// or all lists have been scored. Forgets what was chosen before.
    void score(size_t entries);

    /// The same, but that cells of buckets before `first` have been looked at:
    /// they are in bucket 0 then, and no others are.
    void score_beyond(size_t entries, size_t first);

    /// Of the cells that are wanted in any case, puts those in later buckets
    /// into this one.
    void bring_forward_forced(size_t to);

    /// The first bucket up to which cells hold that many entries.
    size_t bucket_of_entries(size_t entries) const;

    /// What the cells up to that bucket hold.
    size_t entries_up_to(size_t bucket) const;

    /** The first bucket up to which cells hold
     *
     *     n (c / t)^2 >= entries,    1/2 <= c / t <= 2,
     *
     * with c the squared distance of the bucket's cells and t what is known of
     * the k-th neighbour's: a query whose neighbours are near already has less
     * to look for.
     */
    size_t bucket_of_effort(double entries, float t) const;
    /// Of so many times all entries that is all of them.
    static constexpr double kAllByEffort = 4;

    /** Replaces `out` by the segments of the cells in buckets first to last.
     *
     * The slack of a segment is the root of slack2 |q - m|^2 + rounding2 (of
     * slack2 |q|^2 + rounding2 for similarity).
     *
     * @param q_norm  read for similarity
     */
    void choose(
            size_t first,
            size_t last,
            float q_norm,
            float slack2,
            double rounding2,
            std::vector<Segment>& out);

    /// Replaces `out` by so many nearest lists, in order. Unless coarse is by
    /// graph; needs no scores.
    void nearest_lists(size_t lists, std::vector<uint32_t>& out);

    /// The squared distance to the nearest mean whose list has entries, once
    /// scored; infinity if there is none.
    float nearest_filled() const;

    /// The distance from which on the cells of bucket b and all later ones are
    /// (b = kBuckets: those not scored yet, about); infinity if there are none.
    float distance_from(size_t b) const;

    /// The last bucket of cells that may be nearer than that.
    size_t bucket_within(float distance) const;

    /// The distance from which on lists have not been scored; 0: not known.
    float distance_of_unscored() const;

    bool all_scored() const {
        return lists_left == 0;
    }
    /// Entries of the cells that have been scored.
    size_t entries_scored() const {
        return n_entries;
    }
    /// The lists whose cells are wanted in any case, and their entries.
    std::vector<uint32_t> forced_lists() const;
    size_t forced_entries() const;
    size_t n_cells_scored() const {
        return n_lists * cells.cells_per_list;
    }

    /// Entries of FAISS's lists that belong to no cell.
    struct Untracked {
        uint32_t list, begin, end;
    };
    std::vector<Untracked> untracked;

    static constexpr size_t kBuckets = 512;

private:
    void score_list(size_t list, bool first);
    /// Sets forced_distance; returns the first bucket beyond it.
    size_t find_forced();
    void count();

    const PairCells& cells;
    const CellCodes& codes;
    const size_t L;
    QueryCoarse* coarse = nullptr;
    std::vector<uint32_t> sizes; ///< of lists

    std::vector<uint16_t> list_bucket; ///< by distance
    size_t lists_up_to = 0;            ///< buckets of lists that are scored
    size_t n_forced = 0;
    float forced_distance = -1; ///< of the last list that comes first
    int64_t ties = 0;           ///< lists at that distance that do
    std::vector<float> nearest_of;
    std::vector<std::pair<float, uint32_t>> in_order;
    std::vector<uint32_t> portion;

    size_t lists_left = 0;
    size_t n_lists = 0;
    size_t n_entries = 0;
    std::vector<uint32_t> list_of; ///< scored, in the order of scores
    std::vector<uint8_t> forced;   ///< of each list scored
    std::vector<float> scores;     ///< L of each list scored
    std::vector<uint16_t> bucket;  ///< of each cell scored
    std::vector<uint32_t> chosen;  ///< cells scored
    float least = 0, largest = 0;
    std::array<uint32_t, kBuckets> entries_in = {};
};

} // namespace faiss_ext
