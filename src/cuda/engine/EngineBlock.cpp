#include <algorithm>
#include <cmath>

#include "cuda/engine/Engine.h"
#include "cuda/operands/AugmentedOperands.h"

/** One block of rows, from candidates to sums: steps 3 to 6 of the README. */
namespace gmm::cuda {

namespace {

/// Of the components listed, `fast` sums those that weigh 2^-kKeptBits of a row
/// and more: less is below what rounding costs.
constexpr float kKeptBits = 12;
/// n_k that a narrow component may have of rows of the dense path before these
/// are summed with second halves: no row of such a component is among them.
constexpr double kNarrowMass = 1. / 128;
/// Clusters have responsibilities times weights in fp16, of 2^15: below this
/// weight they are too coarse.
constexpr double kCtaClusterWeight = 1. / (1 << 20);
/// Of the rows, those whose lists are too long from which clusters take less
/// time for all of them than lists and the dense path do, where there are as
/// many components as a cluster holds.
constexpr float kClusterShare = 0.3f;
/// Of the rows one in so many, at most, takes the dense path apart from others:
/// those that clusters and lists leave are near narrow components.
constexpr int kApart = 16;

} // namespace

void Engine::use_block(
        const PreparedRows& rows,
        int64_t row_begin,
        int count,
        const float* weight,
        EStep step,
        Precisions& p) {
    const bool hard = step == EStep::hard;
    mark();
    ScoreArgs args = model_.score_args(hard && p.lo);
    args.rows_operand = rows.operand;
    args.row_begin = row_begin;
    args.rows = count;
    if (model_.geometry == Geometry::product) {
        args.row_constant =
                (hard && p.lo ? rows.row_constant : rows.row_constant_hi) +
                row_begin;
    }
    args.folded.row_slots = {
            rows.row_slots, rows.operand.rows, kAugmentedSlots, 1};
    // What is not listed weighs at most k 2^-bound of a row.
    const float bound =
            float(std::log2(double(model_.k)) + list_bits(options_.precision));
    // Four standard deviations of both scores compared.
    const float slack = p.refine ? float(std::min(8 * p.error, 64.)) : 0.f;
    SelectArgs select;
    select.bound = hard ? 0.f : bound + slack;
    select.keep_bound =
            p.all ? select.bound : std::min(bound, kKeptBits) + slack;
    select.unit_dropped = sparse_.unit_dropped;
    select.row_weight = weight;
    select.keys = sparse_.keys;
    select.values = sparse_.values;
    select.row_ranges = sparse_.row_ranges;
    select.unit_counts = sparse_.unit_counts;
    select.row_lse = sparse_.row_lse;
    const bool clusters = !hard && !p.dense_lo && !p.many &&
            dense_.has_clusters() && least_weight_ >= kCtaClusterWeight;
    // A narrow component's rows must be found: by lists, if not by a cluster.
    if (score_.hopper && args.folded.components.data &&
        (!p.narrow || clusters) && !p.all) {
        select.pilot = sparse_.pilot;
        if (clusters) {
            select.pilot_share = kClusterShare * float(model_.padded_k) /
                    (kMaxCtaCluster * kComponentTile);
        }
        check(cudaMemsetAsync(select.pilot, 0, sizeof(uint64_t), stream_),
              "clearing");
    }
    score_(args, select, stream_);
    mark();
    SparseStep sparse;
    sparse.place(sparse_, count, stream_);
    if (p.refine) {
        refine(sparse_,
               count,
               rows,
               row_begin,
               fp16_scale_,
               weight,
               model_,
               p.all,
               float(p.tolerance),
               p.widened ? std::max(slack, 1.f) : INFINITY,
               stream_);
    } else {
        sparse.compact(sparse_, count, stream_);
    }
    mark();
    sparse.wait(sparse_);
    int together = 0;
    if (clusters && count >= kCtaClusterRows &&
        sparse.overflowed >= count / 4 * 3) {
        const DenseRows block{
                rows,
                row_begin,
                count,
                weight,
                nullptr,
                sparse_.row_lse,
                false,
                false};
        dense_.add_by_cta_cluster(
                model_,
                block,
                fp16_scale_,
                p.narrow ? model_.narrow : nullptr,
                slack,
                bound,
                stream_);
        together = sparse.overflowed;
        sparse.compact_again(sparse_, count, stream_);
        together -= sparse.overflowed;
    } else if (p.widened && rows_rejected(sparse_, stream_)) {
        sparse.compact_again(sparse_, count, stream_);
    }
    mark();
    NumberedRows rest{
            rows,
            row_begin,
            fp16_scale_,
            weight,
            sparse_.row_lse,
            sparse_.overflowed,
            sparse.overflowed};
    const TripleRoom room = sparse_.room(count, uint32_t(sparse.entries));
    if (!hard && rest.count && can_take_all_pairs(rest.count, room)) {
        sparse.entries += exact_all_pairs(model_, rest, room, stream_);
        rest.count = 0;
    } else if (
            p.refine && rest.count &&
            (p.all || together || rest.count <= count / 4)) {
        sparse.entries += long_.run(
                score_, model_, rest, bound, slack, room, dense_, stream_);
    }
    sparse.accumulate(
            sparse_,
            rows,
            row_begin,
            count,
            p.sums_lo,
            p.all ? nullptr : model_.narrow,
            sums_,
            stream_);
    mark();
    const int dense = rest.count;
    const bool again = dense && p.many && !p.dense_lo && report.rows == 0 &&
            !first_halves_do(rest);
    p.dense_lo |= again;
    if (rest.count) {
        // Rows in place must not have the log-sum-exp of first halves.
        dense_.accumulate(
                score_,
                model_,
                rest,
                again ? 0 : count,
                p.dense_lo,
                p.narrow && p.lo && (!p.dense_lo || p.widened) &&
                        rest.count <= count / kApart,
                stream_);
    }
    mark();
    last_rows_ = count;
    double* const scratch = objective_ + kTotals;
    uint32_t* const done = reinterpret_cast<uint32_t*>(objective_ + 3);
    sum_values(
            {sparse_.row_lse, weight, count, objective_, scratch, done},
            {sparse_.unit_dropped,
             nullptr,
             hard ? 0 : units_of(count),
             objective_ + 1,
             scratch + kSumBlocks,
             done + 1},
            stream_);
    report.rows += count;
    report.long_rows += sparse.overflowed - dense;
    report.dense_rows += together + dense;
    report.responsibilities += sparse.entries;
}

bool Engine::first_halves_do(NumberedRows& rows) {
    NumberedRows first = rows;
    first.count = std::min(rows.count, kDenseRows);
    dense_.accumulate(score_, model_, first, 0, false, false, stream_);
    dense_.find_narrow(model_, 1, objective_ + 2, stream_);
    copy(totals_host_.as<double>() + 2, objective_ + 2, 1, stream_);
    check(cudaStreamSynchronize(stream_), "the dense path");
    if (narrow_have_mass()) {
        dense_.begin();
        return false;
    }
    rows.numbers += first.count;
    rows.count -= first.count;
    return true;
}

bool Engine::narrow_have_mass() const {
    return totals_host_.as<double>()[2] > kNarrowMass * least_weight_;
}

} // namespace gmm::cuda
