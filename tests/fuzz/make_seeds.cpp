// Small files of every kind, for the fuzzers to begin with.

#include <cstdio>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>

#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/ivflib.h"

using namespace faiss_ext;

namespace {

constexpr int kD = 8;
constexpr auto kL2 = faiss::METRIC_L2, kIP = faiss::METRIC_INNER_PRODUCT;
std::string folder;
std::vector<float> x; ///< 1600 vectors about ten centres

using Change = std::function<void(IVFGMM&)>;

void put(const std::string& name, faiss::Index* index) {
    faiss_ext::write_index(index, (folder + "/index/" + name).c_str());
}

void put(
        const std::string& name,
        const char* description,
        size_t n,
        faiss::MetricType metric = kL2,
        const Change& before = {},
        const Change& after = {}) {
    std::unique_ptr<faiss::Index> index(
            faiss_ext::index_factory(kD, description, metric));
    IVFGMM* gmm = extract_gmm(index.get());
    if (before) {
        before(*gmm);
    }
    index->train(600, x.data());
    std::vector<idx_t> ids(n);
    for (size_t i = 0; i < n; i++) {
        ids[i] = 3 * idx_t(i);
    }
    if (std::string(description).starts_with("IDMap")) {
        index->add_with_ids(n, x.data(), ids.data());
    } else if (n > 0) {
        index->add(n, x.data());
    }
    if (gmm && n >= 100) {
        faiss_ext::calibrate(index.get(), 24, &x[1500 * kD], 3);
    }
    if (after) {
        after(*gmm);
    }
    put(name, index.get());
}

void put_indexes() {
    put("flat", "GMM8x4,Flat", 200);
    put("flat_x1_diag", "GMM8x1_Diag,Flat", 120);
    put("flat_tied", "GMM8x4_Tied,Flat", 60);
    put("flat_ip", "GMM8x4,Flat", 150, kIP);
    put("pq", "GMM8x4,PQ2x4", 150);
    put("pq_ip", "GMM8x4,PQ2x4", 100, kIP);
    put("sq8", "GMM8x4,SQ8", 150);
    put("sqfp16", "GMM8x4,SQfp16", 60);
    put("idmap", "IDMap,GMM8x4,Flat", 100);
    put("idmap2", "IDMap2,GMM8x4,SQ8", 60);
    put("pca", "PCA4,GMM8x4,SQ8", 100);
    put("opq_refine", "OPQ2_4,GMM8x4,PQ2x4,RFlat", 100);
    put("hnsw", "GMM16x4_HNSW4,Flat", 150);
    put("fastscan", "GMM8,PQ4x4fs", 100);
    put("codes", "GMM8x4,RaBitQ2", 150);
    put("codes_ip_map", "GMM8x1,RaBitQ4", 100, kIP, {}, [](IVFGMM& g) {
        dynamic_cast<faiss::IndexIVF&>(g).set_direct_map_type(
                faiss::DirectMap::Hashtable);
    });
    put("codes_refine", "PCA4,GMM8x4,RaBitQ,RFlat", 100);
    put("empty", "GMM8x4,Flat", 0);
    put("copies", "GMM8,Flat", 100, kL2, [](IVFGMM& g) { g.max_assign = 2; });
    put("copies3", "GMM8,Flat", 100, kL2, [](IVFGMM& g) {
        g.max_assign = 3;
        g.assign_threshold = 0.01f;
    });
    put("target", "GMM8x4,Flat", 120, kL2, {}, [](IVFGMM& g) {
        g.target_recall = 0.9f;
    });
    put("mass", "GMM8x4,Flat", 120, kL2, {}, [](IVFGMM& g) {
        g.probe_mass = 0.8f;
        g.probe_order = ProbeOrder::codes;
    });
    put("map_array", "GMM8x4,Flat", 100, kL2, {}, [](IVFGMM& g) {
        dynamic_cast<faiss::IndexIVF&>(g).make_direct_map();
    });
    put("map_hashtable", "GMM8x4,Flat", 100, kL2, {}, [](IVFGMM& g) {
        dynamic_cast<faiss::IndexIVF&>(g).set_direct_map_type(
                faiss::DirectMap::Hashtable);
    });
    std::unique_ptr<faiss::Index> untrained(
            faiss_ext::index_factory(kD, "GMM8_Diag,PQ2x4"));
    put("untrained", untrained.get());
    std::unique_ptr<faiss::Index> plain(
            faiss_ext::index_factory(kD, "IVF8,Flat"));
    plain->train(400, x.data());
    plain->add(40, x.data());
    put("plain", plain.get());
    IndexGMM quantizer(kD, 8, gmm::Covariance::diagonal);
    quantizer.train(600, x.data());
    quantizer.policy = {ProbeOrder::scale_free, 0.9f, 2};
    put("quantizer", &quantizer);
    faiss::IndexIVFPQ ivf(new IndexGMM(kD, 8), kD, 8, 2, 4);
    ivf.own_fields = true;
    ivf.quantizer_trains_alone = 1;
    ivf.train(600, x.data());
    ivf.add(80, x.data());
    put("quantizer_pq", &ivf);
}

void put_vectors() {
    auto file = [&](char format, const std::string& bytes) {
        std::ofstream(
                folder + "/vectors/" + std::to_string(int(format)),
                std::ios::binary)
                << format << bytes;
    };
    auto words = [](std::initializer_list<uint32_t> values) {
        return std::string(
                reinterpret_cast<const char*>(values.begin()),
                values.size() * 4);
    };
    const std::string floats(reinterpret_cast<const char*>(x.data()), 24);
    file(0, words({3}) + floats.substr(0, 12) + words({3}) + floats.substr(12));
    file(1, words({4}) + "abcd" + words({4}) + "efgh");
    file(2, words({2, 3}) + floats);
    file(3, words({2, 4}) + "abcdefgh");
    const char* types[] = {"<f4", "<f2", "|u1"};
    for (int i = 0; i < 3; i++) {
        std::string text = "{'descr': '" + std::string(types[i]) +
                "', 'fortran_order': False, 'shape': (2, 3), }\n";
        std::string head("\x93NUMPY\x01\x00", 8);
        head += char(text.size());
        head += '\0';
        file(char(4 + i), head + text + floats.substr(0, i == 0 ? 24 : 12 / i));
    }
}

} // namespace

int main(int argc, char** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
        return 2;
    }
    folder = argv[1];
    std::mt19937 bits(1);
    std::normal_distribution<float> normal;
    x.resize(1600 * kD);
    float centre[10][kD];
    for (auto& c : centre) {
        for (float& v : c) {
            v = 3 * normal(bits);
        }
    }
    for (size_t i = 0; i < x.size(); i++) {
        x[i] = centre[i / kD % 10][i % kD] + normal(bits);
    }
    put_indexes();
    put_vectors();
}
