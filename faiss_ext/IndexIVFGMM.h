#pragma once

#include <cstddef>
#include <string>
#include <type_traits>
#include <vector>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexScalarQuantizer.h>

#include "GaussianMixture.h"
#include "VectorSource.h"
#include "faiss_ext/Calibration.h"
#include "faiss_ext/PairCells.h"
#include "faiss_ext/ProbePolicy.h"
#include "faiss_ext/impl/faiss_compat.h"

namespace faiss_ext {

/** Search parameters of one call. All of them replace the index's, those left
 * at their defaults too: without a target_recall there is none, and nprobe is
 * 1. To pass a selector alone use faiss::SearchParameters, with which the
 * index's own count. SearchParametersIVF keeps the index's order, mass and
 * target; its nprobe (1 if it is not set) limits what is searched. */
struct SearchParametersIVFGMM : faiss::SearchParametersIVF {
    ProbeOrder probe_order = ProbeOrder::calibrated;
    float probe_mass = 1;    ///< see IVFGMM
    float target_recall = 0; ///< see IVFGMM
};

/** What a Gaussian mixture adds to an IVF index: the part of IndexIVFGMM that
 * does not depend on the codec.
 *
 * The means are the index's quantizer (a stock faiss::IndexFlat), so a stock
 * FAISS finds a working IVF index in what it reads.
 */
struct IVFGMM {
    gmm::Covariance covariance = gmm::Covariance::isotropic;
    std::vector<float> variances;   ///< size nlist, nlist * d or 1
    std::vector<float> log_weights; ///< size nlist
    std::string backend;            ///< what trained it: "cpu" or "cuda"

    /** Order of probing. By codes nprobe means the cost of so many lists: the
     * codes of the nprobe nearest lists are looked at, and those of the nearest
     * cells elsewhere, as many as there is time for, four times as many in all
     * at most; few entries are compared. It finds what whole lists find, and
     * more. Where there is not time for that (few or short vectors in nprobe
     * lists, k in the hundreds), and for queries of which cells or the first
     * codes tell too little because they come from elsewhere than the vectors,
     * `calibrated` is whole lists: nprobe of them (for k >= 64, up to 30 %
     * more). What takes how long is a constant of the library, never
     * measured: results are the same on any machine. With nprobe = nlist all is
     * searched. */
    ProbeOrder probe_order = ProbeOrder::calibrated;
    /** In (0, 1]. Below 1 a search of whole lists stops once this share of the
     * posterior is covered (ProbePolicy), with nprobe as a cap; by codes it is
     * a target_recall, if there is a calibration. */
    float probe_mass = 1;
    /** In [0, 1). Above 0 the calibration chooses order and stop: the setting
     * with the least cost that reached this recall on held-out queries, of what
     * searching all of this index's codes finds (compressed codes miss more).
     * max_codes remains as a cap, and the nprobe of a
     * faiss::SearchParametersIVF given for one call (1, if it is not set), but
     * not that of a SearchParametersIVFGMM; the index's own nprobe is not used
     * then. An index that is not calibrated is searched through, as is one that
     * has shrunk to fewer than 1000 vectors and less than half; one of more
     * that was never calibrated, with calibrate_on_add = false, throws. A query
     * farther from its nearest mean than all that were calibrated on looks on
     * until four times as many codes change nothing (of whole lists, at all;
     * not if max_codes or the nprobe of a SearchParametersIVF caps it). With an
     * IDSelector a search goes on until as many vectors that pass have been
     * looked at as one without it looks at, and, whatever nprobe is given (but
     * not beyond max_codes), until there are k, by codes; where few pass, all
     * lists are compared whole. For numbers of neighbours that were not
     * measured see Calibration::choose. range_search takes what the
     * settings that reach it for 1, 10 and 100 neighbours need, looks at more
     * where it finds more, and beyond 100 until twice as much brings nearly
     * nothing.
     */
    float target_recall = 0;

    size_t cells_per_list = 0; ///< 0: from the list sizes; 1: plain IVF
    /** Bits a dimension of the code of each vector (1, 2 or 4; see
     * CellCodes.h); 0: CellCodes::default_bits. Set it before adding, or call
     * optimize(). */
    int code_bits = 0;
    /// Lists that a vector may be in. Above 1 no cells are made, whatever
    /// cells_per_list says.
    size_t max_assign = 1;
    /** A vector is copied to the list that minimises
     * |x - mu_j|^2 + 1/2 (x - mu_i).(x - mu_j) (RAIR, arXiv 2601.07183) if
     * |x - mu_j| <= assign_ratio |x - mu_i| (SPANN, arXiv 2111.08566). */
    float assign_ratio = 1.3f;
    /// Above 0: copies go to the components whose responsibility reaches it
    /// instead, the most responsible one being the home.
    float assign_threshold = 0;
    /// In additions of half the index and in maintain(), if it has grown by
    /// 1.3: on the queries that calibrate() was last given, or on vectors of
    /// the index.
    bool calibrate_on_add = true;

    PairCells cells;
    /** Where max_assign > 1, else empty: for each list, for each entry, the
     * max_assign - 1 lists (-1: none) that hold the same vector and come
     * before this one. The entry is skipped if one of them is probed. Entries
     * are sorted by it, so that what is skipped comes in runs. */
    std::vector<std::vector<int32_t>> earlier_lists;
    /// The max_assign that these are of, as additions and reading set it.
    size_t filled_assign = 0;
    Calibration calibration;

    /** Trains on vectors that need not be in memory, as
     * GpuGMMClustering::train does; a codec that learns (PQ, SQ) on 65,536 of
     * them. Behind wrappers use faiss_ext::train (sources.h). */
    virtual void train_from(const gmm::VectorSource& source) = 0;

    /** Fits order and stop to queries like the user's, after adding.
     *
     * Time O(nq ntotal d). The queries are kept (nq * d floats) for when the
     * index grows, until it is reset or trained. Behind an IndexPreTransform
     * queries must be transformed: faiss_ext::calibrate (ivflib.h) does it.
     *
     * @param nq  at least 20
     * @param xq  size nq * d; nullptr: nq vectors of the index, as if neither
     *            they nor their k nearest were in it
     * @param k   below ntotal and 2^20
     */
    virtual void calibrate(size_t nq, const float* xq, size_t k = 10) = 0;

    /** Chooses L, fits all cells anew to what the index holds and calibrates as
     * adding does, due or not. Two steps, each whole: cells, calibration. Time
     * O(ntotal L d). */
    virtual void optimize() = 0;

    /** Whether the index has changed so much that its cells or its calibration
     * should be made anew: less than half of a list, or (if calibrate_on_add)
     * less than 1 / 1.3 of the index, are entries that they were made for, or L
     * would be twice what it is. Vectors that were removed or replaced count
     * as well as additions do. Time O(nlist).
     *
     * An addition of at least half of what the index then holds does it at once
     * (a whole base in one call; a merge). Smaller ones take no longer than
     * their own vectors: they refit lists of up to 2048 entries that have
     * doubled, and leave the rest due. Searches find what there is all the
     * same. Of target_recall while calibration is due: the setting chosen is
     * that for the vectors that there were, scaled to the present number. That
     * kept the target while half of SIFT replaced the other half, and missed
     * 0.9 by 0.02 where the far ones came (bench/results/trust.md); where a
     * third or more lies in clusters that the index has not seen, it can miss
     * by 0.1 to 0.4 for these: then maintain() should not wait. An index that
     * never was calibrated is searched through. */
    virtual bool maintenance_due() const = 0;

    /** Does what is due, and nothing if nothing is. Each step is whole: a list
     * (or all, where L changes), then the calibration. Like an addition it must
     * not run beside searches. */
    virtual void maintain() = 0;

    /// The fitted mixture, means included.
    virtual gmm::GaussianMixture mixture() const = 0;

    virtual ~IVFGMM() = default;
};

/// Counters beside faiss::indexIVF_stats, over all GMM indexes.
struct IVFGMMStats {
    size_t n_cell_scores = 0; ///< cells whose likelihood was evaluated
    size_t n_codes = 0;       ///< vectors estimated from their code
    void reset();
};
extern IVFGMMStats ivf_gmm_stats;

/// The metric among constructor arguments; METRIC_L2 if there is none.
template <class... Args>
faiss::MetricType metric_among(Args... args) {
    faiss::MetricType metric = faiss::METRIC_L2;
    [[maybe_unused]] auto look = [&](auto arg) {
        if constexpr (std::is_same_v<decltype(arg), faiss::MetricType>) {
            metric = arg;
        }
    };
    (look(args), ...);
    return metric;
}

/** faiss::IndexIVFFlat, IndexIVFPQ or IndexIVFScalarQuantizer with a Gaussian
 * mixture where k-means stood.
 *
 * Everything that the base class does works: add, add_with_ids, search (with
 * SearchParametersIVF or ...GMM, any IDSelector), range_search, remove_ids,
 * reconstruct, reconstruct_n, search_and_reconstruct, merge_from,
 * copy_subset_to, update_vectors, reset, direct maps, METRIC_L2 and
 * METRIC_INNER_PRODUCT (means normalised). Search returns no id twice, and
 * computes no vector's distance twice for one query, but where whole lists held
 * too few and more are looked at, which begins anew. faiss::indexIVF_stats is
 * updated as FAISS does it.
 *
 * Functions of FAISS that change the lists themselves do not know of cells.
 * What they append is searched (not by codes alone, which refuse it), and where
 * a list became shorter a search by codes says so; but what they put in the
 * place of other entries (ivflib's set_invlist_range) cannot be seen:
 * optimize() after each such call makes the cells anew. ivflib's
 * SlidingIndexWindow counts on the order of entries, which cells change: give
 * it an index with cells_per_list = 1, or use remove_ids() and add().
 *
 * Errors are FaissExceptions that name the argument, its value and what was
 * expected, and leave the index as it was; so do memory that does not suffice
 * and faiss::InterruptCallback, wherever they come. An addition of more than
 * 32,768 vectors is whole for each so many, and its exception says how many are
 * in; FAISS's wrappers (IndexPreTransform, IndexRefine) do not count them then:
 * add behind these with faiss_ext::add (sources.h). An addition or merge that
 * is interrupted later, while cells or a calibration are made, returns as if it
 * were not; these stay due (maintenance_due()).
 *
 * Any number of threads may search at a time, and nothing else may run beside a
 * call that is not const: std::shared_mutex, shared by searches and held alone
 * by the others, is enough.
 */
template <class IVF>
struct IndexIVFGMM : IVF, IVFGMM {
    /// Takes the base class's own arguments behind the quantizer, which it
    /// makes itself: (d, nlist, metric), (d, nlist, M, nbits, metric), ...
    template <class... Args>
    IndexIVFGMM(size_t d, size_t nlist, Args... args)
            : IVF(new faiss::IndexFlat(d, metric_among(args...)),
                  d,
                  nlist,
                  args...) {
        this->own_fields = true;
    }
    IndexIVFGMM() = default;

    void train(idx_t n, const float* x) override;
    void train_from(const gmm::VectorSource& source) override;
    void add_with_ids(idx_t n, const float* x, const idx_t* xids) override;
    void add_core(
            idx_t n,
            const float* x,
            const idx_t* xids,
            const idx_t* precomputed_idx FAISS_EXT_ADD_CORE_TAIL_DECL) override;
    void reset() override;

    void search(
            idx_t n,
            const float* x,
            idx_t k,
            float* distances,
            idx_t* labels,
            const faiss::SearchParameters* params = nullptr) const override;
    /// Whole lists, as the base class does it; throws if max_assign > 1, of
    /// codes alone, and for lists that there are not.
    void search_preassigned(
            idx_t n,
            const float* x,
            idx_t k,
            const idx_t* assign,
            const float* centroid_dis,
            float* distances,
            idx_t* labels,
            bool store_pairs,
            const faiss::IVFSearchParameters* params = nullptr,
            faiss::IndexIVFStats* stats = nullptr) const override;
    void range_search(
            idx_t n,
            const float* x,
            float radius,
            faiss::RangeSearchResult* result,
            const faiss::SearchParameters* params = nullptr) const override;
    /// As search_preassigned. (Not virtual in FAISS 1.7.3.)
    void range_search_preassigned(
            idx_t n,
            const float* x,
            float radius,
            const idx_t* assign,
            const float* centroid_dis,
            faiss::RangeSearchResult* result,
            bool store_pairs = false,
            const faiss::IVFSearchParameters* params = nullptr,
            faiss::IndexIVFStats* stats = nullptr) const;
    void search_and_reconstruct(
            idx_t n,
            const float* x,
            idx_t k,
            float* distances,
            idx_t* labels,
            float* recons,
            const faiss::SearchParameters* params = nullptr) const override;

    size_t remove_ids(const faiss::IDSelector& sel) override;
    /// Of an id that is there several times the vector that the direct map
    /// names is replaced; throws for one if max_assign > 1.
    void update_vectors(int nv, const idx_t* idx, const float* v) override;
    /// Throws without a direct map, and for an id that is not there.
    void reconstruct(idx_t key, float* recons) const override;
    void merge_from(faiss::Index& other, idx_t add_id) override;
    void check_compatible_for_merge(const faiss::Index& other) const override;
    void copy_subset_to(
            faiss::IndexIVF& other,
            subset_type_t subset_type,
            idx_t a1,
            idx_t a2) const override;

    void calibrate(size_t nq, const float* xq, size_t k = 10) override;
    void optimize() override;
    bool maintenance_due() const override;
    void maintain() override;
    gmm::GaussianMixture mixture() const override;

private:
    /// Trains the mixture by fit(clustering, means), then the codec on x.
    template <class Fit>
    void train_by(Fit&& fit, idx_t n, const float* x);
};

using IndexIVFFlatGMM = IndexIVFGMM<faiss::IndexIVFFlat>;
using IndexIVFPQGMM = IndexIVFGMM<faiss::IndexIVFPQ>;
using IndexIVFScalarQuantizerGMM = IndexIVFGMM<faiss::IndexIVFScalarQuantizer>;

} // namespace faiss_ext
