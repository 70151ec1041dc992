// Which setting a calibration chooses for a target of recall.
#include "faiss_ext/Calibration.h"

#include "IvfTestTools.h"

namespace faiss_ext {
namespace {

Calibration two_curves() {
    Calibration c;
    c.fitted = true;
    c.ntotal = 5000;
    // by_codes, budget, bound, recall, codes, distances, cost
    c.curves = {
            {1,
             {{true, 100, 1, 0.4f, 100, 10, 400},
              {true, 200, 2, 0.8f, 200, 20, 800},
              {false, 64, 0, 1, 0, 5000, 9000}}},
            {10,
             {{true, 300, 0.5f, 0.5f, 300, 30, 1200},
              {true, 900, 1, 0.9f, 900, 60, 2700},
              {false, 64, 0, 1, 0, 5000, 9000}}}};
    return c;
}

TEST(Calibration, ChoosesTheCheapestThatWasMeasured) {
    const Calibration c = two_curves();
    EXPECT_EQ(c.choose(0.1f, 1).budget, 100);
    EXPECT_EQ(c.choose(0.4f, 1).budget, 100);
    EXPECT_EQ(c.choose(0.41f, 1).budget, 200); // nothing in between
    EXPECT_EQ(c.choose(0.79f, 1).bound, 2);
    EXPECT_EQ(c.choose(0.81f, 1).budget, 64);
    EXPECT_EQ(c.choose(1, 1).recall, 1);
    EXPECT_EQ(c.choose(0.4f, 10).budget, 300);
    EXPECT_EQ(c.choose(0.4f, 10).bound, 0.5f);
    EXPECT_EQ(c.choose(0.85f, 10).budget, 900);
    // in between what both need: of lists their entries, none left out
    for (size_t k : {2, 5, 9}) {
        EXPECT_EQ(c.choose(0.4f, k).budget, 300) << k;
        EXPECT_EQ(c.choose(0.4f, k).bound, 1) << k;
        EXPECT_TRUE(c.choose(0.85f, k).by_codes) << k;
        EXPECT_EQ(c.choose(0.85f, k).budget, 5000) << k;
        EXPECT_EQ(c.choose(0.85f, k).bound, 3) << k;
    }
    // more of the last for more
    EXPECT_EQ(c.choose(0.85f, 11).budget, 990);
    EXPECT_EQ(c.choose(0.85f, 100).budget, 9000);
    EXPECT_EQ(c.choose(0.85f, 100).bound, 1);
    // a radius may have few or many within
    EXPECT_EQ(c.choose_for_range(0.4f).budget, 300);
    EXPECT_EQ(c.choose_for_range(0.4f).bound, 1);
    EXPECT_EQ(c.choose_for_range(0.85f).budget, 5000);
    EXPECT_EQ(c.choose_for_range(0.85f).bound, 3);
    EXPECT_EQ(c.choose_for_range(1).budget, 64);
    EXPECT_FALSE(c.choose_for_range(1).by_codes);
}

TEST(Calibration, SettingsInTheWordsOfEarlierVersions) {
    Calibration c = two_curves();
    for (size_t k : {1, 10}) {
        c.k = k;
        for (float target : {0.4f, 0.8f, 0.95f}) {
            const Calibration::Choice now = c.choose(target, k);
            const auto former = c.choose(target);
            EXPECT_EQ(former.budget, now.budget) << k;
            EXPECT_EQ(former.parameter, now.budget);
            EXPECT_FALSE(former.by_mass);
            EXPECT_EQ(
                    former.order,
                    now.by_codes ? ProbeOrder::sketch : ProbeOrder::distance);
        }
    }
    EXPECT_EQ(ProbeOrder::cell_posterior, ProbeOrder::codes);
    EXPECT_EQ(ProbeOrder::cell_distance, ProbeOrder::codes);
}

TEST(Calibration, ChoosesForTargetsThatThereAre) {
    const Calibration c = two_curves();
    for (float bad : {0.0f, -1.0f, 1.1f, std::nanf("")}) {
        EXPECT_FAISS_ERROR(c.choose(bad, 1), "target_recall = ");
        EXPECT_FAISS_ERROR(c.choose_for_range(bad), "target_recall = ");
    }
    EXPECT_FAISS_ERROR(Calibration().choose(0.9f, 1), "calibrat");
    EXPECT_FAISS_ERROR(Calibration().choose_for_range(0.9f), "calibrat");
}

} // namespace
} // namespace faiss_ext
