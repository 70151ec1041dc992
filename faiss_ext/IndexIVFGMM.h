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

/** Search parameters of one call. Every field replaces the index's setting,
 * also where it is left at its default: nprobe is 1 then, and there is no
 * target. With faiss::SearchParameters, which has a selector alone, all
 * settings of the index hold; with faiss::SearchParametersIVF its probe_order,
 * probe_mass and target_recall do, and nprobe (1 by default) is a cap. */
struct SearchParametersIVFGMM : faiss::SearchParametersIVF {
    ProbeOrder probe_order = ProbeOrder::calibrated;
    float probe_mass = 1;    ///< IVFGMM::probe_mass
    float target_recall = 0; ///< IVFGMM::target_recall
};

/** What a Gaussian mixture adds to an IVF index: the part of IndexIVFGMM that
 * does not depend on the codec.
 *
 * The means are in the index's quantizer, a stock faiss::IndexFlat or
 * IndexHNSWFlat, so that stock FAISS reads the file as an IVF index.
 */
struct IVFGMM {
    gmm::Covariance covariance = gmm::Covariance::isotropic;
    std::vector<float> variances; ///< size num_variances(covariance, nlist, d)
    std::vector<float> log_weights; ///< size nlist
    std::string backend;            ///< what trained it: "cpu" or "cuda"

    /** What a search without a target looks at.
     *
     * `codes`: nprobe buys the time that scanning nprobe whole lists takes. It
     * is spent on the codes of the nprobe nearest lists and of the nearest
     * cells of other lists, four times as many in all at most, and on comparing
     * the few entries that may be near by their codes. That finds what
     * scanning the nprobe lists finds, and more.
     *
     * `calibrated`: the same, but whole lists where codes do not pay: where
     * nprobe lists hold few or short vectors, where k is in the hundreds, and
     * for queries so unlike the vectors that cells or the first codes tell
     * too little. nprobe lists are scanned then, for k >= 64 up to 30 % more.
     *
     * The times are constants of the library, never measured, so that results
     * are the same on any machine. nprobe = nlist searches everything. */
    ProbeOrder probe_order = ProbeOrder::calibrated;
    /** In (0, 1]. Below 1 a search of whole lists stops once this share of the
     * posterior is covered (ProbePolicy), with nprobe as a cap; a search by
     * codes takes it for a target_recall, if the index is calibrated. */
    float probe_mass = 1;
    /** In [0, 1). Above 0 a search takes the cheapest setting that found this
     * share of the neighbours of held-out queries in the calibration. The share
     * is of what comparing all vectors of this index finds: where they are
     * compressed, true neighbours are missed beyond that. Where no setting did
     * (with hundreds of queries, above 0.997 or so) all lists are compared.
     *
     * The index's nprobe is not used then. Caps are max_codes and the nprobe of
     * a faiss::SearchParametersIVF given for one call (1 if it is not set), but
     * not that of a SearchParametersIVFGMM.
     *
     * An index that is not calibrated is searched whole, as is one that has
     * shrunk to fewer than 1000 vectors and to less than half of those that it
     * was calibrated with. One of 1000 vectors or more that is not calibrated
     * because calibrate_on_add is false throws.
     *
     * A query farther from its nearest mean than all in the calibration goes on
     * until four times as many codes change nothing (of whole lists, until all
     * are searched), unless a cap ends it. Without a selector, one whose k-th
     * neighbour is not so much nearer than what it has not looked at as those
     * of the calibration were (Calibration::Point::reach) goes on until it is.
     *
     * With an IDSelector a search goes on until it has looked at as many
     * vectors that pass as one without a selector looks at in all; by codes
     * also until k that pass are found, beyond a given nprobe but not beyond
     * max_codes. Where few vectors pass, all lists are compared whole.
     *
     * For numbers of neighbours that were not measured see Calibration::choose.
     * range_search takes what the settings for 1, 10 and 100 neighbours all
     * need, looks at more where it finds more, and beyond 100 results at twice
     * as much until that finds nearly nothing new.
     */
    float target_recall = 0;

    /// Cells of each list (PairCells::cells_per_list); 0: chosen from the list
    /// sizes; 1: no cells, plain IVF. Used by additions and optimize().
    size_t cells_per_list = 0;
    /** Bits a dimension of the code of each vector (1, 2 or 4; see
     * CellCodes.h); 0: CellCodes::default_bits. Set it before adding, or call
     * optimize() after. */
    int code_bits = 0;
    /// Lists that a vector may be in, 1 to nlist. Above 1 no cells are made,
    /// whatever cells_per_list says.
    size_t max_assign = 1;
    /** Above 0. With max_assign > 1 a vector x of list i is copied to the list
     * j that minimises |x - mu_j|^2 + 1/2 (x - mu_i).(x - mu_j) (RAIR, arXiv
     * 2601.07183) if |x - mu_j| <= assign_ratio |x - mu_i| (SPANN, arXiv
     * 2111.08566). */
    float assign_ratio = 1.3f;
    /// In [0, 1]. Above 0 it takes the place of assign_ratio: a vector is in
    /// the list of its most responsible component, with copies in those of
    /// other components whose responsibility is at least this.
    float assign_threshold = 0;
    /// Additions of at least half of the index and maintain() calibrate anew if
    /// the index has grown by 1.3 since: on the queries that calibrate() was
    /// last given, or else on vectors of the index.
    bool calibrate_on_add = true;

    PairCells cells; ///< of the entries, and their codes
    /** Of each list, for each of its entries, max_assign - 1 lists (-1: none)
     * that hold the same vector and come before this one: a search that probes
     * one of them skips the entry. Entries are sorted by these rows, so that
     * skipped ones come in runs. Empty where max_assign is 1. */
    std::vector<std::vector<int32_t>> earlier_lists;
    /// The max_assign that earlier_lists was made with.
    size_t filled_assign = 0;
    /// The settings that target_recall chooses from.
    Calibration calibration;

    /** Trains on vectors that need not be in memory: the mixture as
     * GpuGMMClustering::train(source) does, a codec that learns (PQ, SQ) on
     * 65,536 of them. An index inside wrappers is trained by faiss_ext::train
     * (sources.h). */
    virtual void train_from(const gmm::VectorSource& source) = 0;

    /** Measures what settings find and cost on queries like the user's, for
     * target_recall to choose from. To be called after adding.
     *
     * Time O(nq ntotal d). The queries are kept (nq * d floats) for when the
     * index grows, until it is reset or trained. Behind an IndexPreTransform
     * queries must be transformed: faiss_ext::calibrate (ivflib.h) does it.
     *
     * @param nq  at least 20
     * @param xq  size nq * d, as if none of them were in the index; nullptr: nq
     *            vectors of it, as if their k nearest were not in it, either
     * @param k   neighbours wanted, below ntotal and 2^20
     */
    virtual void calibrate(size_t nq, const float* xq, size_t k = 10) = 0;

    /** Chooses the number of cells L and fits all cells anew to what the index
     * holds, then calibrates as adding does, whether any of that is due or not.
     * If the calibration throws, the new cells stay. Time O(ntotal L d). */
    virtual void optimize() = 0;

    /** Whether the index has changed so much that maintain() has something to
     * do: the entries that cells or calibration were made for are less than
     * half of a list, or (if calibrate_on_add) less than 1 / 1.3 of the index,
     * or L would be chosen twice as large. Removed and replaced vectors count
     * like added ones. Time O(nlist).
     *
     * An addition or merge of at least half of what the index then holds does
     * it at once. A smaller one takes no longer than its own vectors do: it
     * refits lists of up to 2048 entries that have doubled, and leaves the rest
     * due. Searches find all vectors either way; but while a calibration is
     * due, target_recall takes the setting of the vectors that there were,
     * scaled to the present number. That kept the target while half of SIFT
     * replaced the other half, and missed 0.9 by 0.02 where the far vectors
     * came (bench/results/trust.md). Where a third or more of the vectors lie
     * in clusters that the index had not seen, it can miss by 0.1 to 0.4 for
     * these: then maintain() should not wait. */
    virtual bool maintenance_due() const = 0;

    /** Does what is due, and nothing if nothing is: refits lists one by one (or
     * all at once, where L changes), then calibrates. If it throws, what was
     * done stays, and the list or calibration that failed is as it was. Like an
     * addition it must not run beside searches. */
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
 * METRIC_INNER_PRODUCT (means normalised). A search returns no id twice. It
 * computes no distance twice for one query, unless it scanned whole lists that
 * held fewer than k and begins anew with more of them. faiss::indexIVF_stats is
 * updated as FAISS does it.
 *
 * FAISS's functions that change inverted lists directly do not know of cells.
 * Entries that they append are searched (an index of codes alone refuses them),
 * and a search by codes throws for a list that they shortened. Entries that
 * they put in the place of others (ivflib's set_invlist_range) cannot be
 * noticed: call optimize() after each such call. ivflib's SlidingIndexWindow
 * counts on the order of entries, which cells change: give it an index with
 * cells_per_list = 1, or use remove_ids() and add().
 *
 * Errors are FaissExceptions that name the argument, its value and what was
 * expected. They leave the index as it was, and so do std::bad_alloc and
 * faiss::InterruptCallback, whenever they come. An addition of more than 32,768
 * vectors goes in blocks of so many, each added whole or not at all; if a later
 * one fails, the exception says how many vectors are in. FAISS's wrappers
 * (IndexPreTransform, IndexRefine) do not count these: add to a wrapped index
 * with faiss_ext::add (sources.h). An addition or merge whose vectors are in
 * returns normally if it is interrupted while it makes cells or a calibration;
 * that work stays due (maintenance_due()).
 *
 * Any number of threads may search at a time, and nothing else may run beside a
 * call that is not const: a std::shared_mutex, shared by searches and held
 * alone by other calls, is enough (with glibc searches that leave no pause
 * keep other calls waiting for ever).
 */
template <class IVF>
struct IndexIVFGMM : IVF, IVFGMM {
    /// Arguments are those of the base class without its quantizer, which is
    /// made here: (d, nlist, metric), (d, nlist, M, nbits, metric), ...
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
    /// Scans the given lists whole, as the base class does. Throws if
    /// max_assign > 1, in an index of codes alone, and for lists from nlist on.
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
    /// Where several vectors have one id, the one that the direct map names is
    /// replaced; if max_assign > 1 that throws. Throws without a direct map.
    void update_vectors(int nv, const idx_t* idx, const float* v) override;
    /// Throws without a direct map, and for an id that is not there.
    void reconstruct(idx_t key, float* recons) const override;
    void reconstruct_n(idx_t i0, idx_t ni, float* recons) const override;
    void reconstruct_from_offset(
            int64_t list_no, int64_t offset, float* recons) const override;
    void assign(
            idx_t n, const float* x, idx_t* labels, idx_t k = 1) const override;
    void sa_encode(idx_t n, const float* x, uint8_t* bytes) const override;
    void sa_decode(idx_t n, const uint8_t* bytes, float* x) const override;
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
