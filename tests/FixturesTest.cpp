// Files of every version that was ever in use stay readable (index_io.h). A
// text beside each file says what it holds: fixtures/make_fixtures.cpp wrote
// both.

#include "faiss_ext/index_io.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include <faiss/IndexIDMap.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/index_io.h>

#include "IndexBytes.h"
#include "TestData.h"
#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/io/format.h"
#include "faiss_ext/ivflib.h"

namespace faiss_ext {
namespace {

struct Expected {
    std::map<std::string, std::string> fields;
    std::vector<std::vector<float>> queries;
    std::vector<std::vector<std::pair<idx_t, float>>> found;

    double number(const std::string& name) const {
        const auto field = fields.find(name);
        EXPECT_NE(field, fields.end()) << name;
        return field == fields.end() ? NAN : std::atof(field->second.c_str());
    }

    /// A field "count value value ...".
    std::vector<float> numbers(const std::string& name) const {
        std::istringstream line(fields.at(name));
        size_t n = 0;
        line >> n;
        std::vector<float> out(n);
        for (float& v : out) {
            line >> v;
        }
        EXPECT_TRUE(line) << name;
        return out;
    }
};

Expected read_text(const std::filesystem::path& path) {
    Expected out;
    std::ifstream file(path);
    for (std::string text; std::getline(file, text);) {
        std::istringstream line(text);
        std::string name;
        line >> name;
        if (name == "query") {
            out.queries.emplace_back();
            for (float v; line >> v;) {
                out.queries.back().push_back(v);
            }
        } else if (name == "found") {
            size_t n = 0;
            line >> n;
            out.found.emplace_back(n);
            for (auto& [id, distance] : out.found.back()) {
                line >> id >> distance;
            }
            EXPECT_TRUE(line);
        } else {
            std::string rest;
            std::getline(line >> std::ws, rest);
            out.fields[name] = rest;
        }
    }
    return out;
}

std::vector<std::filesystem::path> fixtures() {
    std::vector<std::filesystem::path> out;
    for (const auto& entry :
         std::filesystem::recursive_directory_iterator(TEST_FIXTURES)) {
        if (entry.path().extension() == ".index") {
            out.push_back(entry.path());
        }
    }
    std::sort(out.begin(), out.end());
    return out;
}

std::unique_ptr<faiss::Index> read(
        const std::filesystem::path& path, int flags = 0) {
    return std::unique_ptr<faiss::Index>(
            faiss_ext::read_index(path.c_str(), flags));
}

void search_everything(faiss::Index* index) {
    if (auto refine = dynamic_cast<faiss::IndexRefine*>(index)) {
        refine->k_factor = 1000;
    }
    if (auto ivf = dynamic_cast<faiss::IndexIVF*>(*unwrap(&index))) {
        ivf->nprobe = ivf->nlist;
        ivf->max_codes = 0;
    }
    if (IVFGMM* gmm = extract_gmm(index)) {
        gmm->probe_mass = 1;
        gmm->target_recall = 0;
    }
}

void expect_found(const faiss::Index& index, const Expected& expected) {
    for (size_t q = 0; q < expected.queries.size(); q++) {
        const auto& row = expected.found[q];
        std::vector<float> distances(row.size());
        std::vector<idx_t> ids(row.size());
        index.search(
                1,
                expected.queries[q].data(),
                row.size(),
                distances.data(),
                ids.data());
        const float last = row.back().second;
        for (size_t r = 0; r < row.size(); r++) {
            const auto [id, distance] = row[r];
            if (id < 0) {
                EXPECT_EQ(ids[r], id) << "query " << q << ", " << r;
                continue;
            }
            const float slack = 1e-4f * (1 + std::abs(distance));
            EXPECT_NEAR(distances[r], distance, slack) << q << ", " << r;
            // Equal codes are as far as each other, in any order.
            if (std::abs(distance - last) > slack) {
                EXPECT_EQ(std::count(ids.begin(), ids.end(), id), 1)
                        << "query " << q << ", id " << id;
            }
        }
    }
}

void expect_fields(faiss::Index* index, const Expected& expected) {
    if (expected.fields.at("type").find("OPQ") == std::string::npos) {
        // FAISS reads an OPQ back as a linear transform, and what has been
        // trained without what it was trained by ("np").
        std::string type = faiss_ext::reverse_index_factory(index);
        if (type.ends_with("np")) {
            type.resize(type.size() - 2);
        }
        EXPECT_EQ(type, expected.fields.at("type"));
    }
    EXPECT_EQ(index->d, expected.number("d"));
    EXPECT_EQ(index->metric_type, expected.number("metric"));
    EXPECT_EQ(index->is_trained, expected.number("trained") == 1);
    EXPECT_EQ(index->ntotal, expected.number("ntotal"));
    if (auto ivf = dynamic_cast<faiss::IndexIVF*>(*unwrap(&index))) {
        EXPECT_EQ(ivf->nlist, expected.number("nlist"));
        EXPECT_EQ(ivf->nprobe, expected.number("nprobe"));
        EXPECT_EQ(ivf->direct_map.type, expected.number("direct_map"));
    }
    const IVFGMM* gmm = extract_gmm(index);
    EXPECT_EQ(gmm != nullptr, expected.fields.count("covariance") == 1);
    if (!gmm) {
        return;
    }
    auto ivf = dynamic_cast<const faiss::IndexIVF*>(gmm);
    EXPECT_EQ(ivf->max_codes, expected.number("max_codes"));
    EXPECT_EQ(int(gmm->covariance), expected.number("covariance"));
    // Version 2 had two more orders of cells, which are codes now.
    EXPECT_EQ(
            int(gmm->probe_order),
            std::min(
                    int(expected.number("probe_order")),
                    int(ProbeOrder::codes)));
    EXPECT_EQ(gmm->probe_mass, float(expected.number("probe_mass")));
    EXPECT_EQ(gmm->target_recall, float(expected.number("target_recall")));
    EXPECT_EQ(gmm->cells_per_list, expected.number("cells_per_list"));
    EXPECT_EQ(gmm->max_assign, expected.number("max_assign"));
    EXPECT_EQ(gmm->assign_ratio, float(expected.number("assign_ratio")));
    EXPECT_EQ(
            gmm->assign_threshold, float(expected.number("assign_threshold")));
    EXPECT_EQ(gmm->calibrate_on_add, expected.number("calibrate_on_add") == 1);
    EXPECT_EQ(gmm->backend, expected.fields.at("backend"));
    EXPECT_EQ(gmm->variances, expected.numbers("variances"));
    EXPECT_EQ(gmm->log_weights, expected.numbers("log_weights"));
    const Calibration& c = gmm->calibration;
    EXPECT_EQ(c.fitted, expected.number("calibrated") == 1);
    EXPECT_EQ(c.k, expected.number("calibration_k"));
    EXPECT_EQ(c.own_queries, expected.number("calibration_own") == 1);
    if (!c.own_queries) { // of its own there may be more after reading
        EXPECT_EQ(c.nq, expected.number("calibration_nq"));
    }
}

/// 0: without a trailer.
uint32_t version_of(std::vector<uint8_t> bytes) {
    if (memcmp(bytes.data(), &kCodesAlone, sizeof(kCodesAlone)) == 0) {
        bytes.erase(bytes.begin(), bytes.begin() + sizeof(kCodesAlone));
    }
    uint64_t stamp, length;
    memcpy(&stamp, &bytes[kStampBegin], 8);
    memcpy(&length, &bytes[kStampBegin + 8], 8);
    TrailerHead head;
    if (stamp != kStamp || length + sizeof(head) > bytes.size()) {
        return 0;
    }
    memcpy(&head, &bytes[length], sizeof(head));
    EXPECT_EQ(head.magic, TrailerHead::kMagic);
    return head.version;
}

std::vector<uint8_t> bytes_of(const std::filesystem::path& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
}

/// What was read is what was in the file and, if trained, finds what it found.
void expect_as_described(faiss::Index* index, const Expected& expected) {
    expect_fields(index, expected);
    if (index->is_trained) {
        EXPECT_EQ(expected.queries.size(), 6u);
        search_everything(index);
        expect_found(*index, expected);
    } else {
        EXPECT_TRUE(expected.queries.empty());
    }
}

/// Cells of an index have codes, whatever they had in its file.
void expect_codes(faiss::Index* index) {
    const IVFGMM* gmm = extract_gmm(index);
    if (!gmm || gmm->cells.empty()) {
        return;
    }
    EXPECT_FALSE(gmm->cells.codes.empty());
    SearchParametersIVFGMM params;
    params.probe_order = ProbeOrder::codes;
    params.nprobe = 2;
    const auto& ivf = dynamic_cast<const faiss::IndexIVF&>(*gmm);
    const std::vector<float> q(ivf.d, 0.5f);
    float distances[4];
    idx_t ids[4];
    ivf_gmm_stats.reset();
    ivf.search(1, q.data(), 4, distances, ids, &params);
    EXPECT_GT(ivf_gmm_stats.n_codes, 0u);
    EXPECT_GE(ids[0], 0);
}

/// Adds, removes, calibrates, writes and reads what came from an old file.
void expect_goes_on(faiss::Index* index, const Expected& expected) {
    const bool ids = dynamic_cast<faiss::IndexIDMap*>(index);
    const size_t n = expected.queries.size();
    const idx_t before = index->ntotal;
    for (size_t q = 0; q < n; q++) {
        const idx_t id = 50 + idx_t(q);
        const float* x = expected.queries[q].data();
        if (ids) {
            index->add_with_ids(1, x, &id);
        } else {
            index->add(1, x);
        }
    }
    EXPECT_EQ(index->ntotal, before + idx_t(n));
    const std::unique_ptr<faiss::Index> back = read_bytes(written(*index));
    for (size_t q = 0; q < n; q++) {
        float distances[2][4];
        idx_t labels[2][4];
        const float* x = expected.queries[q].data();
        index->search(1, x, 4, distances[0], labels[0]);
        back->search(1, x, 4, distances[1], labels[1]);
        for (size_t r = 0; r < 4; r++) {
            EXPECT_EQ(labels[1][r], labels[0][r]);
            EXPECT_EQ(distances[1][r], distances[0][r]);
        }
        if (index->metric_type == faiss::METRIC_L2) {
            EXPECT_LE(distances[0][0], 1.01f * expected.found[q][0].second);
        }
    }
}

TEST(Fixtures, EveryFileOfEveryVersion) {
    size_t of_version[kVersion + 1] = {};
    for (const auto& path : fixtures()) {
        SCOPED_TRACE(path);
        const Expected expected =
                read_text(std::filesystem::path(path).replace_extension("txt"));
        ASSERT_FALSE(expected.fields.empty());
        const uint32_t version = version_of(bytes_of(path));
        ASSERT_LE(version, kVersion);
        of_version[version]++;
        if (version > 0) {
            const std::string folder = path.parent_path().filename();
            EXPECT_EQ(folder.substr(1), std::to_string(version));
        }
        auto index = read(path);
        expect_as_described(index.get(), expected);
        expect_as_described(read(path, faiss::IO_FLAG_MMAP).get(), expected);
        expect_codes(index.get());

        // Written as of today it is the same.
        const std::vector<uint8_t> today = written(*read(path));
        EXPECT_EQ(version_of(today), version > 0 ? kVersion : 0);
        const auto again = read_bytes(today);
        expect_as_described(again.get(), expected);
        if (expected.fields.count("direct_map") == 0 ||
            int(expected.number("direct_map")) !=
                    int(faiss::DirectMap::Hashtable)) {
            EXPECT_TRUE(written(*read_bytes(today)) == today);
        }
        if (index->is_trained && !dynamic_cast<IndexGMM*>(index.get())) {
            expect_goes_on(index.get(), expected);
        }
    }
    for (uint32_t version = kOldestVersion; version <= kVersion; version++) {
        EXPECT_GE(of_version[version], 28u) << version;
    }
}

} // namespace
} // namespace faiss_ext
