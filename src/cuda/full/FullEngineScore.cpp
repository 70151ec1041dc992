#include <algorithm>
#include <cmath>

#include "cuda/full/FullEngine.h"

/** From a block of rows to its pairs, evaluated: see Full.h for the steps. */
namespace gmm::cuda {

using namespace full;

namespace {

/// Less of a row is not summed.
constexpr float kLeastResponsibility = 1e-7f;
/// Pairs of a row that the bounds leave from which screening costs less than
/// to evaluate them.
constexpr int64_t kScreenFrom = 24;

} // namespace

FullEngine::ListSize FullEngine::count_all(int64_t begin, int64_t end) {
    count_pairs(pairs_, begin, end, lists_, stream_);
    HostTotals* const host = host_.as<HostTotals>();
    copy(&host->pairs,
         lists_.begin + int64_t(k_) * lists_.segments,
         1,
         stream_);
    copy(&host->tiles, lists_.tile_begin + k_, 1, stream_);
    check(cudaStreamSynchronize(stream_), "choosing components");
    return {host->pairs, host->tiles};
}

void FullEngine::each_list(int64_t begin, int64_t end, const UseList& use) {
    const auto in_halves = [&] {
        const int64_t middle = begin + (end - begin + 1) / 2;
        each_list(begin, middle, use);
        each_list(middle, end, use);
    };
    if ((end - begin) * 64 * k_ > int64_t(UINT32_MAX)) {
        in_halves(); // the device counts in 32 bits
        return;
    }
    const auto [pairs, tiles] = count_all(begin, end);
    if (pairs > most_pairs_) {
        in_halves();
        return;
    }
    list_pairs(pairs_, begin, end, lists_, stream_);
    use(begin, end, pairs, tiles);
}

void FullEngine::score_block(
        const FullModelView& model,
        const FullRows& rows,
        int64_t count,
        float reach,
        const UsePairs& use) {
    const int64_t words = (count + 63) / 64;
    const float tolerance = options_.precision == Precision::exact
            ? 0.f
            : float(options_.tolerance);
    mark();
    start_rows(totals_, count, stream_);
    guess_components(model, rows, count, pairs_, stream_);
    mark();
    each_list(0, words, [&](int64_t, int64_t, uint32_t, uint32_t tiles) {
        evaluate_pairs(model, rows, lists_, tiles, totals_, stream_);
    });
    set_least(totals_, count, reach, stream_);
    mark();
    if (!screens_) {
        bound_components(model, rows, count, totals_.least, pairs_, stream_);
        if (d_ > kLead && d_ <= kScreenDimension &&
            count_all(0, words).pairs > kScreenFrom * count) {
            prepare_screen(model, hopper_, screen_.as<char>(), stream_);
            screens_ = true;
        }
    }
    if (screens_) {
        screen_components(
                {k_,
                 d_,
                 screen_.as<char>(),
                 rows,
                 count,
                 totals_.least,
                 reach,
                 pairs_},
                hopper_,
                stream_);
    }
    mark();
    each_list(
            0,
            words,
            [&](int64_t begin, int64_t end, uint32_t pairs, uint32_t tiles) {
                evaluate_pairs(model, rows, lists_, tiles, totals_, stream_);
                set_least(totals_, count, reach, stream_);
                evaluate_exactly(
                        model,
                        rows,
                        lists_,
                        tiles,
                        totals_,
                        tolerance,
                        stream_);
                mark();
                const int64_t first = begin * 64;
                use(first, std::min(end * 64, count) - first, pairs);
                mark();
            });
}

float FullEngine::reach_of(EStep step) const {
    return step == EStep::hard ? 0.f
                               : float(std::log(double(k_)) -
                                       std::log(double(kLeastResponsibility)));
}

void FullEngine::use_block(
        const FullModelView& model, int64_t first, int64_t count, EStep step) {
    const FullRows rows = rows_.from(first);
    const float* const weight =
            weights_ ? row_weights_.as<float>() + first : nullptr;
    if (small_shape_) {
        mark();
        accumulate_small(
                model,
                rows,
                count,
                weight,
                kLeastResponsibility,
                step == EStep::hard,
                totals_,
                pass_,
                sums_,
                pieces_memory_.as<double>(),
                stream_);
        mark();
        report.rows += size_t(count);
        last_rows_ = count;
        return;
    }
    score_block(
            model,
            rows,
            count,
            reach_of(step),
            [&](int64_t part_first, int64_t part_count, uint32_t pairs) {
                responsibilities(
                        lists_,
                        pairs,
                        part_first,
                        part_count,
                        weight,
                        kLeastResponsibility,
                        step == EStep::hard,
                        totals_,
                        pass_,
                        stream_);
                add_moments(
                        rows,
                        lists_,
                        sums_,
                        pieces_,
                        pieces_memory_.as<double>(),
                        stream_);
            });
    report.rows += size_t(count);
    last_rows_ = count;
}

} // namespace gmm::cuda
