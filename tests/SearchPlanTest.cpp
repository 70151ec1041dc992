// What a call's settings come to.
#include "faiss_ext/rank/SearchPlan.h"

#include "IvfTestTools.h"

namespace faiss_ext {
namespace {

constexpr size_t kLists = 64;
constexpr size_t kStored = 6400; // a hundred a list

std::unique_ptr<IndexIVFFlatGMM> sift_index() {
    return filled(sift_base(kStored), kLists);
}

/// Curves of k = 1 and 10.
Calibration two_curves() {
    Calibration c;
    c.fitted = true;
    c.k = 10;
    c.ntotal = kStored;
    // by_codes, budget, bound, recall, codes, distances, cost
    c.curves = {
            {1,
             {{true, 100, 1, 0.5f, 100, 10, 400},
              {false, kLists, 0, 1, 0, 6400, 90000}}},
            {10,
             {{true, 300, 0.5f, 0.5f, 300, 30, 1200},
              {true, 900, 2, 0.9f, 900, 60, 2700},
              {false, kLists, 0, 1, 0, 6400, 90000}}}};
    return c;
}

SearchPlan plan_of(
        const IndexIVFFlatGMM& index,
        size_t k = 10,
        const faiss::SearchParameters* params = nullptr) {
    return make_plan(index, index, params, k);
}

TEST(SearchPlan, ListsBuyCodes) {
    const auto index = sift_index();
    index->nprobe = 20;
    const SearchPlan plan = plan_of(*index);
    EXPECT_TRUE(plan.by_codes);
    EXPECT_FALSE(plan.by_effort);
    EXPECT_EQ(plan.nprobe, 20u); // of which all cells are looked at
    // a code has few of a vector's bytes
    EXPECT_EQ(plan.budget, 4 * 2000);
    double before = 0;
    for (size_t nprobe : {10, 20, 40}) {
        SearchParametersIVFGMM params;
        params.nprobe = nprobe;
        const double budget = plan_of(*index, 1, &params).budget;
        EXPECT_GE(budget, before + 10 * kStored / kLists);
        before = budget;
    }
    EXPECT_EQ(plan.bound, 3);
    EXPECT_EQ(plan.max_codes, 0u);
    EXPECT_EQ(plan.sel, nullptr);
    EXPECT_EQ(plan.hidden, nullptr);
    // single comparisons cost more than those of a whole list, codes less
    EXPECT_GT(plan.costs.distance, 5 * plan.costs.scan);
    EXPECT_LT(plan.costs.code, plan.costs.scan / 2);
    // neither the calibration nor its measured costs change what nprobe means
    index->calibration.costs = {1e5f, 50, 1, 1};
    EXPECT_EQ(plan_of(*index).budget, plan.budget);
    index->calibration = {};
    EXPECT_EQ(plan_of(*index).budget, plan.budget);
    // longer codes take longer
    index->code_bits = 4;
    index->optimize();
    EXPECT_GT(plan_of(*index).costs.code, plan.costs.code);
}

/// Whatever scans them.
bool whole_lists(const SearchPlan& plan) {
    return !plan.by_codes || plan.compare_lists;
}

TEST(SearchPlan, WholeListsWhereCodesDoNotPay) {
    auto index = sift_index();
    SearchParametersIVFGMM params;
    params.nprobe = 20; // 2000 vectors, few of them for each of many neighbours
    EXPECT_FALSE(whole_lists(plan_of(*index, 10, &params)));
    EXPECT_TRUE(whole_lists(plan_of(*index, 200, &params)));
    EXPECT_EQ(plan_of(*index, 200, &params).order, ProbeOrder::distance);
    EXPECT_EQ(plan_of(*index, 200, &params).nprobe, 20u);
    params.probe_order = ProbeOrder::codes; // unless they are asked for
    EXPECT_FALSE(whole_lists(plan_of(*index, 200, &params)));
    EXPECT_FALSE(whole_lists(plan_of(*index, 5000, &params)));
    // all lists are an exact search
    for (auto order : {ProbeOrder::calibrated, ProbeOrder::codes}) {
        params.probe_order = order;
        params.nprobe = kLists;
        EXPECT_FALSE(plan_of(*index, 1, &params).by_codes);
        params.nprobe = 1000;
        EXPECT_EQ(plan_of(*index, 1, &params).nprobe, kLists);
    }
    // and so are whole lists by other orders
    params.nprobe = 20;
    for (auto order :
         {ProbeOrder::distance,
          ProbeOrder::log_likelihood,
          ProbeOrder::scale_free}) {
        params.probe_order = order;
        EXPECT_FALSE(plan_of(*index, 1, &params).by_codes);
        EXPECT_EQ(plan_of(*index, 1, &params).order, order);
    }
    // few vectors, or few dimensions
    params.nprobe = 1;
    params.probe_order = ProbeOrder::calibrated;
    EXPECT_TRUE(whole_lists(plan_of(*index, 10, &params)));
    params.nprobe = 20;
    for (size_t d : {8, 16}) {
        auto small = filled(uniform(2000, d, 1), 16);
        small->nprobe = 4;
        EXPECT_TRUE(whole_lists(plan_of(*small, 1))) << d;
        // by FAISS's scanners where vectors are short
        EXPECT_EQ(plan_of(*small, 100).compare_lists, d == 16) << d;
        small->probe_order = ProbeOrder::codes;
        EXPECT_FALSE(whole_lists(plan_of(*small, 1))) << d;
    }
    // no codes
    index->cells_per_list = 1;
    index->optimize();
    for (auto order : {ProbeOrder::calibrated, ProbeOrder::codes}) {
        params.probe_order = order;
        EXPECT_FALSE(plan_of(*index, 1, &params).by_codes);
        EXPECT_EQ(plan_of(*index, 1, &params).order, ProbeOrder::distance);
    }
}

TEST(SearchPlan, ATargetTakesAPointOfTheCalibration) {
    const auto index = sift_index();
    index->calibration = two_curves();
    index->nprobe = 3;
    SearchParametersIVFGMM params;
    params.nprobe = 2; // the index's and this are not used for a target
    params.target_recall = 0.8f;
    for (auto order : {ProbeOrder::calibrated, ProbeOrder::codes}) {
        params.probe_order = order;
        const SearchPlan plan = plan_of(*index, 10, &params);
        EXPECT_TRUE(plan.by_codes && plan.by_effort);
        EXPECT_EQ(plan.budget, 900);
        EXPECT_EQ(plan.bound, 2);
        EXPECT_EQ(plan.nprobe, 0u);
    }
    EXPECT_EQ(plan_of(*index, 30, &params).budget, 2700);
    params.target_recall = 0.4f;
    EXPECT_EQ(plan_of(*index, 1, &params).budget, 100);
    EXPECT_EQ(plan_of(*index, 2, &params).budget, 300);
    // a radius: what any of the curves asks for
    EXPECT_EQ(plan_of(*index, 0, &params).budget, 300);
    EXPECT_EQ(plan_of(*index, 0, &params).bound, 1);
    // the point that searches everything
    params.target_recall = 0.95f;
    const SearchPlan all = plan_of(*index, 10, &params);
    EXPECT_FALSE(all.by_codes);
    EXPECT_EQ(all.nprobe, kLists);
    EXPECT_EQ(all.order, ProbeOrder::distance);
    // the index's own
    index->target_recall = 0.8f;
    EXPECT_EQ(plan_of(*index).budget, 900);
    faiss::SearchParameters plain;
    EXPECT_EQ(plan_of(*index, 10, &plain).budget, 900);
}

TEST(SearchPlan, AProbeMassIsATargetWhereThereAreCodes) {
    const auto index = sift_index();
    index->calibration = two_curves();
    SearchParametersIVFGMM params;
    params.nprobe = kLists;
    params.probe_mass = 0.85f;
    EXPECT_EQ(plan_of(*index, 10, &params).budget, 900);
    EXPECT_TRUE(plan_of(*index, 10, &params).by_effort);
    // an order of lists has its own posterior
    params.probe_order = ProbeOrder::log_likelihood;
    EXPECT_EQ(plan_of(*index, 10, &params).probe_mass, 0.85f);
    EXPECT_EQ(plan_of(*index, 10, &params).order, ProbeOrder::log_likelihood);
    params.probe_order = ProbeOrder::distance; // which has none
    EXPECT_EQ(plan_of(*index, 10, &params).order, ProbeOrder::scale_free);
    EXPECT_FALSE(plan_of(*index, 10, &params).by_codes);
}

TEST(SearchPlan, BudgetsGrowWithTheIndex) {
    const auto index = sift_index();
    index->calibration = two_curves();
    index->target_recall = 0.8f;
    index->calibration.ntotal = kStored / 2;
    EXPECT_EQ(plan_of(*index).budget, 1800);
    index->calibration.ntotal = 2 * kStored; // vectors have been removed
    EXPECT_EQ(plan_of(*index).budget, 900);
}

TEST(SearchPlan, NprobeOfACallCapsATarget) {
    const auto index = sift_index();
    index->calibration = two_curves();
    index->target_recall = 0.8f;
    faiss::SearchParametersIVF stock;
    stock.nprobe = 4;
    EXPECT_EQ(plan_of(*index, 10, &stock).budget, 400);
    stock.nprobe = 20;
    EXPECT_EQ(plan_of(*index, 10, &stock).budget, 900);
    index->target_recall = 0.95f; // everything
    EXPECT_FALSE(plan_of(*index, 10, &stock).by_codes);
    EXPECT_EQ(plan_of(*index, 10, &stock).nprobe, 20u);
}

TEST(SearchPlan, AnEntryThatMayNotBeFoundDoesNotCount) {
    const auto index = sift_index();
    index->calibration = two_curves();
    index->target_recall = 0.4f;
    faiss::SearchParameters params;
    const faiss::IDSelectorRange half(0, kStored / 2), few(0, 30);
    params.sel = const_cast<faiss::IDSelectorRange*>(&half);
    EXPECT_NEAR(plan_of(*index, 10, &params).budget, 600, 90);
    EXPECT_TRUE(plan_of(*index, 10, &params).by_codes);
    params.sel = const_cast<faiss::IDSelectorRange*>(&few);
    EXPECT_FALSE(plan_of(*index, 10, &params).by_codes); // all lists, exactly
    EXPECT_EQ(plan_of(*index, 10, &params).nprobe, kLists);
    // nprobe means what it says
    index->target_recall = 0;
    index->nprobe = 5;
    const double budget = plan_of(*index).budget;
    EXPECT_EQ(plan_of(*index, 10, &params).budget, budget);
}

TEST(SearchPlan, CalibrationsOfListsGiveLists) {
    const auto index = sift_index();
    Calibration& c = index->calibration;
    c = two_curves();
    c.curves = {
            {10,
             {{false, 3, 0, 0.5f, 0, 300, 300},
              {false, 9, 0, 0.9f, 0, 900, 900},
              {false, kLists, 0, 1, 0, kStored, kStored}}}};
    index->target_recall = 0.8f;
    EXPECT_FALSE(plan_of(*index).by_codes);
    EXPECT_EQ(plan_of(*index).nprobe, 9u);
    EXPECT_EQ(plan_of(*index, 25).nprobe, 23u); // 22.5
    EXPECT_EQ(plan_of(*index, 1000).nprobe, kLists);
    faiss::SearchParametersIVF stock;
    stock.nprobe = 4;
    EXPECT_EQ(plan_of(*index, 10, &stock).nprobe, 4u);
}

TEST(SearchPlan, WithoutACalibration) {
    auto index = sift_index();
    SearchParametersIVFGMM params;
    params.target_recall = 0.9f;
    EXPECT_FAISS_ERROR(plan_of(*index, 10, &params), "calibrat");
    auto small = filled(sift_base(999), 16);
    const SearchPlan plan = plan_of(*small, 10, &params);
    EXPECT_FALSE(plan.by_codes);
    EXPECT_EQ(plan.nprobe, 16u);
    EXPECT_EQ(plan.probe_mass, 1);
}

TEST(SearchPlan, WhatACallSaysIsPassedOn) {
    const auto index = sift_index();
    const faiss::IDSelectorRange range(0, 10);
    faiss::SearchParameters graph;
    SearchParametersIVFGMM params;
    params.nprobe = 7;
    params.max_codes = 123;
    params.sel = const_cast<faiss::IDSelectorRange*>(&range);
    params.quantizer_params = &graph;
    const SearchPlan plan = plan_of(*index, 10, &params);
    EXPECT_EQ(plan.max_codes, 123u);
    EXPECT_EQ(plan.sel, &range);
    EXPECT_EQ(plan.quantizer_params, &graph);
    faiss::SearchParameters only_selector;
    only_selector.sel = params.sel;
    index->max_codes = 50;
    index->nprobe = 2;
    EXPECT_EQ(plan_of(*index, 10, &only_selector).sel, &range);
    EXPECT_EQ(plan_of(*index, 10, &only_selector).max_codes, 50u);
    EXPECT_EQ(plan_of(*index, 10, &only_selector).nprobe, 2u);
    faiss::SearchParametersIVF stock;
    stock.nprobe = 3;
    EXPECT_EQ(plan_of(*index, 10, &stock).nprobe, 3u);
    EXPECT_EQ(plan_of(*index, 10, &stock).max_codes, 0u);
    struct Foreign : faiss::SearchParameters {
        ~Foreign() override = default;
    } foreign;
    EXPECT_FAISS_ERROR(plan_of(*index, 10, &foreign), "SearchParametersIVF");
}

/// A selector of lists: only they are searched, and whole.
TEST(SearchPlan, OnlyListsThatAreSelected) {
    const auto index = sift_index();
    faiss::IDSelectorRange lists(3, 8);
    faiss::SearchParameters quantizer;
    quantizer.sel = &lists;
    SearchParametersIVFGMM params;
    params.quantizer_params = &quantizer;
    const Vectors q = sift_queries(20);
    for (float target : {0.0f, 0.9f}) {
        params.target_recall = target;
        for (size_t nprobe : {2, 5, 40}) {
            params.nprobe = nprobe;
            const Found found = find(*index, q, 100, &params);
            faiss::SearchParametersIVF stock;
            stock.nprobe = target > 0 ? 5 : nprobe; // all that there are
            stock.quantizer_params = &quantizer;
            std::vector<float> coarse(q.n * stock.nprobe);
            std::vector<idx_t> keys(q.n * stock.nprobe);
            index->quantizer->search(
                    q.n,
                    q.x.data(),
                    stock.nprobe,
                    coarse.data(),
                    keys.data(),
                    &quantizer);
            Found expected = found;
            index->search_preassigned(
                    q.n,
                    q.x.data(),
                    100,
                    keys.data(),
                    coarse.data(),
                    expected.dis.data(),
                    expected.ids.data(),
                    false,
                    &stock);
            EXPECT_EQ(found.dis, expected.dis) << target << " " << nprobe;
        }
    }
    params.target_recall = 0;
    params.probe_order = ProbeOrder::log_likelihood;
    EXPECT_FAISS_ERROR(plan_of(*index, 10, &params), "quantizer_params->sel");
}

} // namespace
} // namespace faiss_ext
