// The arithmetic of the measuring programs: a wrong ratio looks like any other.
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "inputs.h"
#include "report.h"
#include "vector_files.h"

namespace {

/// A file of 32-bit words that goes away with the test.
struct WordFile {
    std::string path;

    WordFile(const std::string& name, const std::vector<uint32_t>& words)
            : path(testing::TempDir() + name) {
        std::ofstream(path, std::ios::binary)
                .write(reinterpret_cast<const char*>(words.data()),
                       words.size() * sizeof(uint32_t));
    }
    ~WordFile() {
        std::filesystem::remove(path);
    }
};

uint32_t bits(float value) {
    uint32_t word;
    static_assert(sizeof(word) == sizeof(value));
    std::memcpy(&word, &value, sizeof(word));
    return word;
}

TEST(Frontier, DropsPointsThatACheaperOneEquals) {
    bench::Frontier f;
    f.add(0.5, 100);
    f.add(0.4, 200); // worse and dearer
    f.add(0.9, 300);
    f.add(0.9, 400); // no better and dearer
    f.finish();
    EXPECT_EQ(f.recall, (std::vector<double>{0.5, 0.9}));
    EXPECT_EQ(f.cost, (std::vector<double>{100, 300}));
}

TEST(Frontier, InterpolatesBetweenPointsAndNotBeyond) {
    bench::Frontier f;
    f.add(0.9, 300);
    f.add(0.5, 100);
    f.finish();
    EXPECT_DOUBLE_EQ(f.cost_at(0.7).value(), 200);
    EXPECT_DOUBLE_EQ(f.cost_at(0.5).value(), 100);
    EXPECT_DOUBLE_EQ(f.cost_at(0.9).value(), 300);
    EXPECT_DOUBLE_EQ(f.recall_at(150).value(), 0.6);
    EXPECT_FALSE(f.cost_at(0.4));
    EXPECT_FALSE(f.cost_at(0.95));
    EXPECT_FALSE(f.recall_at(50));
    EXPECT_DOUBLE_EQ(f.recall_at(1000).value(), 0.9);
}

TEST(Compare, GivesTheBaselinesCostOverOurs) {
    std::vector<bench::Row> rows;
    for (const auto& [label, factor] :
         {std::pair<const char*, double>{"IVF4", 2}, {"GMM4", 1}}) {
        for (const double recall : {0.5, 0.8, 0.99}) {
            bench::Row row;
            row.label = label;
            row.recall_at_k = recall;
            row.distances_per_query = 1000 * factor * recall;
            row.coarse_distances_per_query = 4;
            row.cell_scores_per_query = 32; // of 4 operations
            row.codes_per_query = 8;        // an eighth each
            row.set_total_cost(128);        // together 2 distances
            rows.push_back(row);
        }
    }
    EXPECT_DOUBLE_EQ(rows[0].total_cost_per_query, 1000 + 4 + 2);
    const auto ratios = bench::compare(
            rows, "IVF*", {})["baseline_over_ours"]["distances_per_query"][0];
    EXPECT_EQ(ratios["label"], "GMM4");
    EXPECT_DOUBLE_EQ(ratios["ratio_at_recall"]["0.9"], 2);
    EXPECT_DOUBLE_EQ(ratios["worst_ratio"], 2);
    // 1600 distances buy our dearest point, which costs 990.
    EXPECT_NEAR(ratios["gain_at"]["0.8"], 0.19, 1e-12);
    EXPECT_THROW(bench::compare(rows, "HNSW*", {}), std::runtime_error);
}

TEST(Geometric, BeginsAtOneAndEndsAtTheLast) {
    EXPECT_EQ(
            bench::geometric(12),
            (std::vector<size_t>{1, 2, 3, 4, 5, 6, 8, 10, 12}));
    EXPECT_TRUE(bench::geometric(0).empty());
}

TEST(ReadNeighbors, ReadsBothFormats) {
    const WordFile ibin("truth.ibin", {2, 3, 1, 2, 3, 4, 5, 6});
    const WordFile with_distances(
            "scored.ibin", {2, 1, 7, 8, bits(0.5f), bits(0.6f)});
    const WordFile ivecs("truth.ivecs", {3, 1, 2, 3, 3, 4, 5, 6});
    const std::vector<int64_t> ids{1, 2, 3, 4, 5, 6};
    for (const auto& path : {ibin.path, ivecs.path}) {
        const auto truth = bench::read_neighbors(path);
        EXPECT_EQ(truth.n, 2u);
        EXPECT_EQ(truth.k, 3u);
        EXPECT_EQ(truth.ids, ids);
    }
    EXPECT_EQ(
            bench::read_neighbors(with_distances.path).ids,
            (std::vector<int64_t>{7, 8}));
}

TEST(ReadNeighbors, RefusesWhatDoesNotFit) {
    const WordFile short_ibin("short.ibin", {2, 3, 1, 2, 3, 4, 5});
    const WordFile empty_ibin("empty.ibin", {});
    const WordFile ragged_ivecs("ragged.ivecs", {2, 1, 2, 1, 9, 2});
    const WordFile foreign("truth.txt", {1, 1, 1});
    for (const auto& file :
         {&short_ibin, &empty_ibin, &ragged_ivecs, &foreign}) {
        EXPECT_THROW(bench::read_neighbors(file->path), std::runtime_error)
                << file->path;
    }
    EXPECT_THROW(bench::read_neighbors("no such.ibin"), std::runtime_error);
}

TEST(Truth, CountsATieWithTheLastNeighbourAsRight) {
    // 1-d base 0, 1, -1, 5; query 0 with k = 2: vectors 1 and 2 tie.
    const WordFile base(
            "line.fbin", {4, 1, bits(0), bits(1), bits(-1), bits(5)});
    const WordFile query("point.fbin", {1, 1, bits(0)});
    bench::Inputs inputs;
    inputs.base = base.path;
    inputs.query = query.path;
    inputs.k = 2;
    inputs.load();
    const int64_t either[] = {0, 2}, other[] = {0, 1}, wrong[] = {0, 3},
                  none[] = {-1, -1};
    EXPECT_EQ(inputs.truth.recall(0, either), 1);
    EXPECT_EQ(inputs.truth.recall(0, other), 1);
    EXPECT_EQ(inputs.truth.recall(0, wrong), 0.5);
    EXPECT_EQ(inputs.truth.recall(0, none), 0);
}

TEST(Provenance, LeavesFoldersOutOfTheCommand) {
    const char* argv[] = {
            "./bin/recall_sweep",
            "--base=/some/where/base.u8bin",
            "/some/where/query.u8bin",
            "nprobe=1; a=2"};
    EXPECT_EQ(
            bench::provenance(4, argv)["command"],
            "recall_sweep --base=base.u8bin query.u8bin 'nprobe=1; a=2'");
}

} // namespace
