#include "cuda/engine/BlockPlan.h"

#include <gtest/gtest.h>

/** How rows are cut into blocks: of the CUDA backend, without a device. */
namespace {

using namespace gmm::cuda;

size_t scratch_bytes(int64_t rows) {
    return 300 * size_t(rows);
}

/// 10M x 128 in 32 GB, good_rows as of K = 1024.
BlockNeeds usual() {
    BlockNeeds needs{};
    needs.n = 10'000'000;
    needs.d = 128;
    needs.row = 300;
    needs.row_lo = 560;
    needs.raw = 1024;
    needs.fixed = 10'000'000;
    needs.budget = size_t(32) << 30;
    needs.good_rows = 4'200'000;
    return needs;
}

BlockPlan plan(const BlockNeeds& needs) {
    return plan_blocks(needs, scratch_bytes);
}

TEST(BlockPlanTest, EqualBlocksOfWholeWaves) {
    const BlockPlan p = plan(usual());
    EXPECT_TRUE(p.resident);
    EXPECT_EQ(p.rows % kWave, 0);
    EXPECT_EQ((10'000'000 + p.rows - 1) / p.rows, 3);
    EXPECT_GT(10'000'000 - 2 * p.rows, p.rows - 3 * kWave);
    for (size_t n : {0, 1, 77, 1'000'000, kResidentBlock}) {
        BlockNeeds needs = usual();
        needs.n = n;
        EXPECT_EQ(plan(needs).rows, int64_t(std::max<size_t>(n, 1)));
    }
}

/// Many components leave few groups for the sort.
TEST(BlockPlanTest, SmallerWhereGroupsAreFew) {
    BlockNeeds needs = usual();
    needs.good_rows = 100'000;
    EXPECT_TRUE(plan(needs).resident);
    EXPECT_LE(plan(needs).rows, kFedBlock);
    EXPECT_GE(plan(needs).rows, kFedBlock * 9 / 10);
    needs.good_rows = 2'000'000;
    EXPECT_EQ((10'000'000 + plan(needs).rows - 1) / plan(needs).rows, 5);
}

TEST(BlockPlanTest, FewerRowsOfManyDimensions) {
    BlockNeeds needs = usual();
    needs.d = 1024;
    EXPECT_LE(plan(needs).rows, kResidentBlock / 8 + kWave);
    EXPECT_GE(plan(needs).rows, kResidentBlock / 8 - 2 * kWave);
    needs.d = 1'000'000;
    EXPECT_EQ(plan(needs).rows, kWave);
}

/// Whatever memory there is: a model that needs second halves and one that does
/// not add the sums of rows that stay in one order.
TEST(BlockPlanTest, ModelsShareBlocks) {
    for (size_t mib = 100; mib < 9000; mib += 50) {
        BlockNeeds needs = usual();
        needs.budget = mib << 20;
        const BlockPlan without = plan(needs);
        needs.row = needs.row_lo;
        const BlockPlan with = plan(needs);
        EXPECT_EQ(with.rows, without.rows) << mib;
        EXPECT_LE(with.resident, without.resident) << mib;
    }
}

TEST(BlockPlanTest, ResidentWhileItFits) {
    for (size_t mib = 100; mib < 9000; mib += 50) {
        BlockNeeds needs = usual();
        needs.budget = mib << 20;
        const BlockPlan p = plan(needs);
        const size_t rows = needs.fixed + needs.n * needs.row;
        if (p.resident) {
            EXPECT_LE(rows + scratch_bytes(p.rows), needs.budget) << mib;
        } else {
            EXPECT_LE(p.rows, kFedBlock) << mib;
            EXPECT_GT(
                    rows + scratch_bytes(kFedBlock) + 8 * kWave * needs.raw,
                    needs.budget)
                    << mib;
        }
    }
}

} // namespace
