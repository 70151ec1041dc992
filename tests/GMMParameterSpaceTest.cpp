#include "faiss_ext/GMMParameterSpace.h"

#include <algorithm>
#include <clocale>
#include <cstdlib>
#include <memory>
#include <string>

#include <faiss/IndexIVF.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexReplicas.h>
#include <faiss/IndexShards.h>

#include "TemporaryFolder.h"
#include "TestData.h"
#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/ivflib.h"

namespace faiss_ext {
namespace {

std::unique_ptr<faiss::Index> make(const char* description) {
    return std::unique_ptr<faiss::Index>(index_factory(128, description));
}

TEST(GMMParameterSpace, SetsWhereverTheIndexIsWrapped) {
    for (const char* description :
         {"GMM16,Flat", "PCA32,GMM16,SQ8", "OPQ16,GMM16,PQ16,RFlat"}) {
        auto index = make(description);
        IVFGMM* gmm = extract_gmm(index.get());
        ASSERT_NE(gmm, nullptr);
        GMMParameterSpace().set_index_parameters(
                index.get(),
                "nprobe=7,max_codes=1000,probe_mass=0.75,"
                "probe_order=cell_distance,target_recall=0.5");
        auto* ivf = dynamic_cast<faiss::IndexIVF*>(gmm);
        EXPECT_EQ(ivf->nprobe, 7u) << description;
        EXPECT_EQ(ivf->max_codes, 1000u);
        EXPECT_EQ(gmm->probe_mass, 0.75f);
        EXPECT_EQ(gmm->probe_order, ProbeOrder::codes);
        EXPECT_EQ(gmm->target_recall, 0.5f);
        GMMParameterSpace().set_index_parameter(
                index.get(), "probe_order", int(ProbeOrder::distance));
        EXPECT_EQ(gmm->probe_order, ProbeOrder::distance);
    }
}

TEST(GMMParameterSpace, SetsTheQuantizerOfStockIndexes) {
    auto index = make("GMM16,PQ32x4fs");
    GMMParameterSpace().set_index_parameters(
            index.get(), "nprobe=3,probe_order=scale_free,probe_mass=0.9");
    auto* ivf = dynamic_cast<faiss::IndexIVF*>(index.get());
    auto* quantizer = dynamic_cast<IndexGMM*>(ivf->quantizer);
    EXPECT_EQ(ivf->nprobe, 3u);
    EXPECT_EQ(quantizer->policy.order, ProbeOrder::scale_free);
    EXPECT_EQ(quantizer->policy.probe_mass, 0.9f);
    EXPECT_FAISS_ERROR(
            GMMParameterSpace().set_index_parameters(
                    index.get(), "target_recall=0.9"),
            "target_recall = 0.9");
}

/// FAISS would make tables of all of these lists, and end the process.
TEST(GMMParameterSpace, FastScanProbesListsThatThereAre) {
    faiss::IndexPreTransform index(make("GMM16,PQ32x4fs").release());
    index.own_fields = true;
    GMMParameterSpace().set_index_parameters(&index, "nprobe=1000000000");
    EXPECT_EQ(dynamic_cast<faiss::IndexIVF&>(*index.index).nprobe, 16u);
}

TEST(GMMParameterSpace, SpacesStandWhereOneLikes) {
    for (const char* settings :
         {" nprobe = 7 , probe_order= cell_distance,target_recall =0.5 ",
          "nprobe=7 probe_order=cell_distance\ttarget_recall=0.5,",
          "nprobe\n=\n7,,probe_order=cell_distance\n,target_recall=0.5"}) {
        auto index = make("GMM16,Flat");
        GMMParameterSpace().set_index_parameters(index.get(), settings);
        IVFGMM* gmm = extract_gmm(index.get());
        EXPECT_EQ(dynamic_cast<faiss::IndexIVF*>(gmm)->nprobe, 7u);
        EXPECT_EQ(gmm->probe_order, ProbeOrder::codes);
        EXPECT_EQ(gmm->target_recall, 0.5f);
    }
}

TEST(GMMParameterSpace, NumbersHaveAPointInEveryLocale) {
    // few machines have a locale with a comma, so it is made
    const TemporaryFolder folder;
    const std::string make_it =
            "localedef -i de_DE -f UTF-8 " + folder.file("de_DE.UTF-8");
    if (std::system((make_it + " > /dev/null 2>&1").c_str()) != 0) {
        GTEST_SKIP() << "no localedef";
    }
    setenv("LOCPATH", folder.path.c_str(), 1);
    const bool changed = std::setlocale(LC_NUMERIC, "de_DE.UTF-8");
    auto index = make("GMM16,Flat");
    std::string error;
    try {
        GMMParameterSpace().set_index_parameters(
                index.get(), "target_recall=0.9,nprobe=+2.5e1");
    } catch (const faiss::FaissException& e) {
        error = e.what();
    }
    std::setlocale(LC_NUMERIC, "C");
    unsetenv("LOCPATH");
    ASSERT_TRUE(changed);
    EXPECT_EQ(error, "");
    EXPECT_EQ(extract_gmm(index.get())->target_recall, 0.9f);
    EXPECT_EQ(dynamic_cast<faiss::IndexIVF&>(*index).nprobe, 25u);
}

TEST(GMMParameterSpace, SetsAllPartsOfShardsAndReplicas) {
    for (const bool threaded : {false, true}) {
        faiss::IndexShards shards(128, threaded);
        faiss::IndexReplicas replicas(128, threaded);
        std::vector<std::unique_ptr<faiss::Index>> parts;
        for (int i = 0; i < 4; i++) {
            parts.push_back(make(i % 2 ? "GMM16,Flat" : "PCA32,GMM16,Flat"));
            (i < 2 ? static_cast<faiss::ThreadedIndex<faiss::Index>&>(shards)
                   : replicas)
                    .addIndex(parts[i].get());
        }
        // A wrapper around parts, one of which is wrapped.
        faiss::IndexPreTransform wrapped(&shards);
        for (faiss::Index* whole :
             std::initializer_list<faiss::Index*>{&wrapped, &replicas}) {
            GMMParameterSpace space;
            space.set_index_parameters(
                    whole, "nprobe=7,target_recall=0.5,probe_order=distance");
            EXPECT_EQ(extract_gmms(whole).size(), 2u);
            for (IVFGMM* gmm : extract_gmms(whole)) {
                EXPECT_EQ(dynamic_cast<faiss::IndexIVF*>(gmm)->nprobe, 7u);
                EXPECT_EQ(gmm->target_recall, 0.5f);
                EXPECT_EQ(gmm->probe_order, ProbeOrder::distance);
            }
            EXPECT_FAISS_ERROR(
                    space.set_index_parameters(whole, "target_recall=1.5"),
                    "target_recall = 1.5");
            space.initialize(whole);
            EXPECT_GE(space.parameter_ranges.size(), 2u);
        }
        // Nothing is set where one part has no mixture.
        auto stock = make("IVF16,Flat");
        faiss::IndexReplicas mixed(128, threaded);
        mixed.addIndex(parts[0].get());
        mixed.addIndex(stock.get());
        EXPECT_FAISS_ERROR(
                GMMParameterSpace().set_index_parameter(
                        &mixed, "target_recall", 0.75),
                "no mixture");
        EXPECT_EQ(extract_gmms(parts[0].get())[0]->target_recall, 0.5f);
    }
}

TEST(GMMParameterSpace, InitializeKnowsWhatCanBeTuned) {
    auto ranges = [](const char* description) {
        auto index = make(description);
        GMMParameterSpace space;
        space.initialize(index.get());
        std::vector<std::string> names;
        for (const auto& range : space.parameter_ranges) {
            names.push_back(range.name);
            EXPECT_TRUE(
                    std::is_sorted(range.values.begin(), range.values.end()));
        }
        return names;
    };
    auto has = [](const std::vector<std::string>& names, const char* name) {
        return std::count(names.begin(), names.end(), name) == 1;
    };
    for (const char* gmm : {"GMM16,Flat", "PCA32,GMM16,Flat"}) {
        const auto names = ranges(gmm);
        EXPECT_TRUE(has(names, "nprobe")) << gmm;
        EXPECT_TRUE(has(names, "probe_mass")) << gmm;
    }
    EXPECT_FALSE(has(ranges("IVF16,Flat"), "probe_mass"));
    for (const char* refined : {"GMM16,SQ4,RFlat", "PCA32,GMM16,Flat,RFlat"}) {
        const auto names = ranges(refined);
        EXPECT_TRUE(has(names, "k_factor_rf")) << refined;
        EXPECT_TRUE(has(names, "nprobe")) << refined;
    }
    EXPECT_FALSE(has(ranges("GMM16,Flat"), "k_factor_rf"));
}

TEST(GMMParameterSpace, BadSettingsAreNamedAndChangeNothing) {
    auto index = make("PCA32,GMM16,Flat");
    IVFGMM* gmm = extract_gmm(index.get());
    for (const auto& wrong :
         std::initializer_list<std::pair<const char*, const char*>>{
                 {"probe_mass=0", "probe_mass = 0"},
                 {"probe_mass=1.01", "probe_mass = 1.01"},
                 {"probe_mass=nan", "probe_mass = nan"},
                 {"target_recall=1", "target_recall = 1"},
                 {"target_recall=-0.5", "target_recall = -0.5"},
                 {"nprobe=0", "nprobe = 0"},
                 {"nprobe=1.5", "nprobe = 1.5"},
                 {"nprobe=1e30", "nprobe = 1e+30"},
                 {"max_codes=-3", "max_codes = -3"},
                 {"probe_order=17", "17"},
                 {"probe_order=1.5", "probe_order = 1.5"},
                 {"probe_order=nearest", "\"nearest\""},
                 {"probe_mass=much", "\"probe_mass=much\""},
                 {"probe_mass", "\"probe_mass\""},
                 {"=4", "\"=4\""},
                 {"no_such_parameter=4", "no_such_parameter"}}) {
        EXPECT_FAISS_ERROR(
                GMMParameterSpace().set_index_parameters(
                        index.get(), wrong.first),
                wrong.second);
    }
    // Nothing is set of a string of which something is wrong.
    auto* ivf = dynamic_cast<faiss::IndexIVF*>(gmm);
    const size_t nprobe = ivf->nprobe;
    for (const char* setting :
         {"nprobe=9,probe_mass=0.5,target_recall=2",
          "probe_mass=0.5,nprobe=9,max_codes=7,no_such_parameter=4",
          "nprobe=9,max_codes=0.5",
          "nprobe=9,probe_mass"}) {
        EXPECT_THROW(
                GMMParameterSpace().set_index_parameters(index.get(), setting),
                faiss::FaissException);
        EXPECT_EQ(ivf->nprobe, nprobe) << setting;
        EXPECT_EQ(ivf->max_codes, 0u) << setting;
    }
    EXPECT_EQ(gmm->probe_mass, 1);
    EXPECT_EQ(gmm->target_recall, 0);
    EXPECT_EQ(gmm->probe_order, ProbeOrder::calibrated);
    auto stock = make("IVF16,Flat");
    EXPECT_FAISS_ERROR(
            GMMParameterSpace().set_index_parameters(
                    stock.get(), "probe_mass=0.5"),
            "no mixture");
    auto fast = make("GMM16,PQ16x4fs");
    EXPECT_FAISS_ERROR(
            GMMParameterSpace().set_index_parameters(
                    fast.get(), "target_recall=0.5"),
            "target_recall = 0.5: a faiss::IndexIVFPQFastScan has no mixture "
            "in its lists, expected");
}

} // namespace
} // namespace faiss_ext
