#include "faiss_ext/index_io.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <random>

#include <faiss/IndexFlat.h>
#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/impl/io.h>
#include <faiss/index_factory.h>
#include <faiss/index_io.h>

#include "IndexBytes.h"
#include "IvfTestTools.h"
#include "TemporaryFolder.h"
#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/ivflib.h"
#include "quick_training.h"

namespace faiss_ext {
namespace {

constexpr int kD = 128;
constexpr int kK = 10;

const Vectors& base() {
    static const Vectors data = sift_base(2000);
    return data;
}

const Vectors& queries() {
    static const Vectors data = sift_queries(60);
    return data;
}

faiss::IndexIVF& ivf_of(faiss::Index* index) {
    return dynamic_cast<faiss::IndexIVF&>(**unwrap(&index));
}

void fill(faiss::Index& index) {
    if (dynamic_cast<faiss::IndexIDMap*>(&index)) {
        std::vector<idx_t> ids(base().n);
        for (size_t i = 0; i < ids.size(); i++) {
            ids[i] = 1000 + i;
        }
        index.add_with_ids(base().n, base().x.data(), ids.data());
    } else {
        index.add(base().n, base().x.data());
    }
}

/// With the id map in front, which the factory would leave out.
std::unique_ptr<faiss::Index> make(
        const std::string& description,
        faiss::MetricType metric = faiss::METRIC_L2,
        bool filled = true) {
    const size_t map =
            description.starts_with("IDMap") ? description.find(',') + 1 : 0;
    std::unique_ptr<faiss::Index> index(
            faiss_ext::index_factory(kD, description.c_str() + map, metric));
    if (map > 0) {
        std::unique_ptr<faiss::IndexIDMap> wrapper(
                map == 6 ? new faiss::IndexIDMap(index.get())
                         : new faiss::IndexIDMap2(index.get()));
        index.release();
        wrapper->own_fields = true;
        index = std::move(wrapper);
    }
    train_quickly(index.get());
    if (filled) {
        index->train(base().n, base().x.data());
        fill(*index);
        ivf_of(index.get()).nprobe = 4;
    }
    return index;
}

std::unique_ptr<faiss::Index> read_piped(const Bytes& bytes) {
    Pipe pipe(bytes);
    return std::unique_ptr<faiss::Index>(faiss_ext::read_index(&pipe));
}

Found search(const faiss::Index& index) {
    return find(index, queries(), kK);
}

struct Case {
    const char* description;
    faiss::MetricType metric;
};

const Case kCases[] = {
        {"GMM32,Flat", faiss::METRIC_L2},
        {"GMM32,Flat", faiss::METRIC_INNER_PRODUCT},
        {"GMM32x1_Diag,Flat", faiss::METRIC_L2},
        {"GMM32x7_Tied,PQ16x4", faiss::METRIC_L2},
        {"GMM32,PQ16x4", faiss::METRIC_INNER_PRODUCT},
        {"GMM32,SQ8", faiss::METRIC_L2},
        {"IDMap,GMM32,Flat", faiss::METRIC_L2},
        {"IDMap2,GMM32,SQ8", faiss::METRIC_L2},
        {"PCAR64,GMM32,Flat,RFlat", faiss::METRIC_L2},
        {"GMM32,PQ32x4fs", faiss::METRIC_L2},
        {"GMM32_Diag,PQ32x4fs", faiss::METRIC_INNER_PRODUCT},
        {"RR128,GMM32,PQ32x4fs", faiss::METRIC_L2},
        {"GMM32,RaBitQ4", faiss::METRIC_L2},
        {"GMM32x1_Diag,RaBitQ", faiss::METRIC_INNER_PRODUCT},
        {"IDMap2,GMM32x5,RaBitQ2", faiss::METRIC_L2},
        {"PCAR64,GMM32,RaBitQ4,RFlat", faiss::METRIC_L2},
        {"GMM32_HNSW8,RaBitQ2,Refine(SQ8)", faiss::METRIC_L2},
};

bool holds_codes_alone(const Case& c) {
    return std::string(c.description).find("RaBitQ") != std::string::npos;
}

TEST(IndexIO, ResultsAreTheSameToTheBit) {
    for (const Case& c : kCases) {
        SCOPED_TRACE(c.description);
        auto index = make(c.description, c.metric);
        const Found expected = search(*index);
        const Bytes bytes = written(*index);
        auto back = read_bytes(bytes);
        const faiss::IndexIVF& ivf = ivf_of(index.get());
        const faiss::IndexIVF& read_ivf = ivf_of(back.get());
        EXPECT_EQ(typeid(read_ivf), typeid(ivf));
        EXPECT_EQ(
                faiss_ext::reverse_index_factory(back.get()),
                faiss_ext::reverse_index_factory(index.get()));
        EXPECT_EQ(back->ntotal, index->ntotal);
        EXPECT_EQ(search(*back), expected);
        EXPECT_EQ(search(*read_piped(bytes)), expected);
        // What was read can be written again, and is the same.
        EXPECT_EQ(written(*back), bytes);
        // The index that was written is as it was.
        EXPECT_EQ(search(*index), expected);
    }
}

/// Any index of FAISS's can be what refines.
TEST(IndexIO, WhateverRefines) {
    for (const char* description :
         {"GMM32,SQ8,Refine(PQ16x4)",
          "GMM32,SQ8,Refine(PQ16x4fs)",
          "GMM32,SQ8,Refine(RQ2x4)",
          "GMM32,SQ8,Refine(HNSW8)",
          "PCAR64,GMM32,RaBitQ4,Refine(PCA8,SQ8)"}) {
        SCOPED_TRACE(description);
        auto index = make(description, faiss::METRIC_L2);
        const auto back = read_bytes(written(*index));
        EXPECT_EQ(search(*back), search(*index));
    }
    // but for codes that are not as long as they should be
    auto index = make("GMM32,SQ8,Refine(PQ16x4)", faiss::METRIC_L2);
    auto& refine = dynamic_cast<faiss::IndexRefine&>(*index);
    dynamic_cast<faiss::IndexFlatCodes&>(*refine.refine_index).codes.resize(9);
    EXPECT_FAISS_ERROR(written(*index), "codes to refine by");
}

TEST(IndexIO, EverySearchSettingIsTheSame) {
    auto index = make("GMM32,Flat");
    IVFGMM* gmm = extract_gmm(index.get());
    ASSERT_TRUE(gmm->calibration.fitted);
    gmm->target_recall = 0.9f;
    gmm->assign_ratio = 1.5f;
    dynamic_cast<faiss::IndexIVF*>(index.get())->max_codes = 700;
    auto back = read_bytes(written(*index));
    IVFGMM* other = extract_gmm(back.get());
    EXPECT_EQ(dynamic_cast<faiss::IndexIVF*>(other)->max_codes, 700u);
    EXPECT_EQ(other->assign_ratio, 1.5f);
    EXPECT_EQ(other->backend, gmm->backend);
    EXPECT_EQ(other->variances, gmm->variances);
    EXPECT_EQ(other->log_weights, gmm->log_weights);
    EXPECT_EQ(other->calibration.report(), gmm->calibration.report());
    for (float target : {0.0f, 0.5f, 0.9f}) {
        for (auto order :
             {ProbeOrder::calibrated,
              ProbeOrder::distance,
              ProbeOrder::log_likelihood,
              ProbeOrder::scale_free,
              ProbeOrder::codes}) {
            for (float mass : {0.8f, 1.0f}) {
                for (IVFGMM* g : {gmm, other}) {
                    g->target_recall = target;
                    g->probe_order = order;
                    g->probe_mass = mass;
                }
                ASSERT_EQ(search(*back), search(*index)) << to_string(order);
            }
        }
    }
}

TEST(IndexIO, StockFaissRefusesCodesAloneByTheirName) {
    for (const Case& c : kCases) {
        if (!holds_codes_alone(c)) {
            continue;
        }
        const Bytes bytes = written(*make(c.description, c.metric));
        EXPECT_FAISS_ERROR(read_by_faiss(bytes), "GMMc");
        // without the name there is a shell, and no vectors in it
        const auto stock = read_by_faiss({bytes.begin() + 4, bytes.end()});
        EXPECT_EQ(search(*stock).ids[0], -1);
    }
}

TEST(IndexIO, CodesAloneTakeTheirBytesOnce) {
    auto index = make("GMM32,RaBitQ4");
    const size_t n = base().n, one = kD / 2 + 8 + 8; // code, terms, id
    const size_t before = written(*index).size();
    index->add(n, base().x.data());
    const size_t per_vector = (written(*index).size() - before) / n;
    EXPECT_GE(per_vector, one - 2); // blocks of 16 have room
    EXPECT_LE(per_vector, one + 2);
}

TEST(IndexIO, CodesAloneInWhatCannotBeCopied) {
    struct Refine : faiss::IndexRefineFlat {
        using faiss::IndexRefineFlat::IndexRefineFlat;
    };
    auto index = make("GMM32,RaBitQ4", faiss::METRIC_L2, false);
    Refine wrapper(index.get());
    EXPECT_FAISS_ERROR(written(wrapper), "around codes");
}

TEST(IndexIO, StockFaissFindsAWorkingIndex) {
    for (const Case& c : kCases) {
        SCOPED_TRACE(c.description);
        if (holds_codes_alone(c)) {
            continue;
        }
        auto index = make(c.description, c.metric);
        const auto stock = read_by_faiss(written(*index));
        EXPECT_EQ(extract_gmm(stock.get()), nullptr);
        EXPECT_EQ(stock->ntotal, index->ntotal);
        ivf_of(index.get()).nprobe = 32;
        ivf_of(stock.get()).nprobe = 32;
        EXPECT_GT(agreement(search(*stock), search(*index)), 0.99);
        ivf_of(stock.get()).nprobe = 8;
        EXPECT_GT(agreement(search(*stock), search(*index)), 0.75);
    }
}

TEST(IndexIO, WhatIsReadGoesOnWorking) {
    for (const char* description :
         {"GMM32,Flat",
          "GMM32,SQ8",
          "GMM32,PQ16x4",
          "GMM32,PQ32x4fs",
          "GMM32,RaBitQ2"}) {
        auto index = make(description);
        ivf_of(index.get()).set_direct_map_type(faiss::DirectMap::Hashtable);
        auto back = read_bytes(written(*index));
        for (auto* each : {index.get(), back.get()}) {
            each->add(500, base().x.data());
            if (!extract_gmm(each)) {
                continue; // FastScan's lists cannot remove
            }
            const idx_t ids[] = {100, 101, 2345};
            EXPECT_EQ(each->remove_ids(faiss::IDSelectorArray(3, ids)), 3u);
        }
        EXPECT_EQ(search(*back), search(*index)) << description;
        auto& a = ivf_of(index.get());
        auto& b = ivf_of(back.get());
        EXPECT_EQ(b.direct_map.type, faiss::DirectMap::Hashtable);
        if (extract_gmm(back.get())) {
            std::vector<float> va(kD), vb(kD);
            a.reconstruct(1234, va.data());
            b.reconstruct(1234, vb.data());
            EXPECT_EQ(va, vb);
        }
        back->reset();
        EXPECT_EQ(back->ntotal, 0);
    }
}

TEST(IndexIO, CopiesOfBorderVectors) {
    auto index = make("GMM32x1,Flat", faiss::METRIC_L2, false);
    extract_gmm(index.get())->max_assign = 2;
    index->train(base().n, base().x.data());
    fill(*index);
    ivf_of(index.get()).nprobe = 3;
    auto back = read_bytes(written(*index));
    EXPECT_EQ(back->ntotal, idx_t(base().n));
    EXPECT_EQ(search(*back), search(*index));
    EXPECT_EQ(
            extract_gmm(back.get())->earlier_lists,
            extract_gmm(index.get())->earlier_lists);
}

TEST(IndexIO, UntrainedAndEmptyIndexes) {
    for (const Case& c : kCases) {
        auto index = make(c.description, c.metric, false);
        auto back = read_bytes(written(*index));
        EXPECT_EQ(
                faiss_ext::reverse_index_factory(back.get()),
                faiss_ext::reverse_index_factory(index.get()));
        EXPECT_FALSE(back->is_trained);
        train_quickly(back.get());
        back->train(base().n, base().x.data());
        EXPECT_TRUE(back->is_trained);
        auto empty = read_bytes(written(*back));
        EXPECT_EQ(empty->ntotal, 0);
        fill(*empty);
        EXPECT_EQ(empty->ntotal, idx_t(base().n)) << c.description;
    }
}

TEST(IndexIO, QuantizerAloneAndItsPolicy) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        IndexGMM index(kD, 32, gmm::Covariance::diagonal, metric);
        index.train(base().n, base().x.data());
        index.policy = {ProbeOrder::scale_free, 0.7f, index.policy.exponent};
        auto back = read_bytes(written(index));
        auto& gmm = dynamic_cast<IndexGMM&>(*back);
        EXPECT_EQ(gmm.policy.probe_mass, 0.7f);
        EXPECT_EQ(gmm.policy.exponent, index.policy.exponent);
        EXPECT_EQ(search(gmm), search(index));
        gmm.policy = index.policy = {ProbeOrder::log_likelihood};
        EXPECT_EQ(search(gmm), search(index));
    }
    for (auto covariance : {gmm::Covariance::full, gmm::Covariance::tied}) {
        IndexGMM index(kD, 8, covariance);
        index.cp.niter = 2;
        index.train(base().n, base().x.data());
        index.policy = {ProbeOrder::log_likelihood};
        auto back = read_bytes(written(index));
        auto& gmm = dynamic_cast<IndexGMM&>(*back);
        EXPECT_EQ(gmm.covariance, covariance);
        EXPECT_EQ(gmm.precisions_cholesky, index.precisions_cholesky);
        EXPECT_EQ(search(gmm), search(index));
    }
    // Under a stock index, with a policy that stops.
    auto stock = make("GMM32,PQ32x4fs");
    auto& ivf = ivf_of(stock.get());
    dynamic_cast<IndexGMM&>(*ivf.quantizer).policy = {
            ProbeOrder::scale_free, 0.6f, 2};
    ivf.nprobe = 32;
    auto back = read_bytes(written(*stock));
    EXPECT_EQ(search(*back), search(*stock));
    EXPECT_EQ(ivf_of(back.get()).quantizer_trains_alone, 1);
}

TEST(IndexIO, PlainFaissFilesAreReadAsTheyAre) {
    std::unique_ptr<faiss::Index> index(faiss::index_factory(kD, "IVF16,Flat"));
    index->train(base().n, base().x.data());
    fill(*index);
    faiss::VectorIOWriter by_faiss;
    faiss::write_index(index.get(), &by_faiss);
    EXPECT_EQ(written(*index), by_faiss.data);
    EXPECT_EQ(search(*read_bytes(by_faiss.data)), search(*index));
    EXPECT_EQ(search(*read_piped(by_faiss.data)), search(*index));
}

TEST(IndexIO, SeveralIndexesInOneStream) {
    auto a = make("GMM32,Flat"), b = make("GMM32,RaBitQ2");
    std::unique_ptr<faiss::Index> stock(faiss::index_factory(kD, "Flat"));
    stock->add(100, base().x.data());
    faiss::VectorIOWriter writer;
    faiss_ext::write_index(stock.get(), &writer);
    faiss_ext::write_index(a.get(), &writer);
    faiss_ext::write_index(b.get(), &writer);
    faiss_ext::write_index(b.get(), &writer);
    faiss::VectorIOReader reader;
    reader.data = writer.data;
    Pipe pipe(writer.data);
    for (faiss::IOReader* from :
         {(faiss::IOReader*)&reader, (faiss::IOReader*)&pipe}) {
        for (faiss::Index* each : {stock.get(), a.get(), b.get(), b.get()}) {
            std::unique_ptr<faiss::Index> back(faiss_ext::read_index(from));
            EXPECT_EQ(search(*back), search(*each));
        }
    }
}

TEST(IndexIO, Files) {
    const TemporaryFolder folder;
    const std::string file = folder.file("index");
    auto index = make("PCAR64,GMM32,SQ8");
    faiss_ext::write_index(index.get(), file.c_str());
    std::unique_ptr<faiss::Index> back(faiss_ext::read_index(file.c_str()));
    EXPECT_EQ(search(*back), search(*index));
    EXPECT_EQ(std::filesystem::file_size(file), written(*index).size());
    std::unique_ptr<faiss::Index> mapped(
            faiss_ext::read_index(file.c_str(), faiss::IO_FLAG_MMAP));
    EXPECT_NE(extract_gmm(mapped.get()), nullptr);
    EXPECT_EQ(search(*mapped), search(*index));
    // Read-only: what would change the lists says so, and changes nothing.
    const Vectors more = sift_base(300);
    EXPECT_FAISS_ERROR(mapped->add(more.n, more.x.data()), "IO_FLAG_MMAP");
    EXPECT_FAISS_ERROR(extract_gmm(mapped.get())->optimize(), "IO_FLAG_MMAP");
    EXPECT_EQ(search(*mapped), search(*index));

    std::filesystem::resize_file(file, std::filesystem::file_size(file) - 1);
    EXPECT_FAISS_ERROR(faiss_ext::read_index(file.c_str()), file);
    EXPECT_THROW(faiss_ext::read_index("/no/such/file"), faiss::FaissException);
    EXPECT_THROW(
            faiss_ext::write_index(index.get(), "/no/such/file"),
            faiss::FaissException);
}

/// A small index, so that every byte can be tried.
Bytes small_file(const char* description) {
    const Vectors few = sift_base(200);
    std::vector<float> x(few.n * 2);
    for (size_t i = 0; i < few.n; i++) {
        std::copy_n(few.row(i), 2, x.begin() + i * 2);
    }
    std::unique_ptr<faiss::Index> index(
            faiss_ext::index_factory(2, description));
    index->train(few.n, x.data());
    index->add(few.n, x.data());
    extract_gmm(index.get())->calibrate(40, x.data());
    return written(*index);
}

constexpr const char* kSmall[] = {"GMM4x2,Flat", "GMM4x2,RaBitQ2"};

/// Where the stock part begins.
size_t stock_begin(const Bytes& bytes) {
    return memcmp(bytes.data(), "GMMc", 4) == 0 ? 4 : 0;
}

/// Bytes before the trailer.
size_t stock_length(const Bytes& bytes) {
    const size_t begin = stock_begin(bytes);
    uint64_t length;
    memcpy(&length, bytes.data() + begin + 24, 8);
    return begin + length;
}

TEST(IndexIO, TruncatedAnywhere) {
    for (const char* description : kSmall) {
        const Bytes bytes = small_file(description);
        ASSERT_NO_THROW(read_bytes(bytes));
        ASSERT_LT(stock_length(bytes), bytes.size());
        for (size_t length = 0; length < bytes.size(); length++) {
            const Bytes cut(bytes.begin(), bytes.begin() + length);
            EXPECT_THROW(read_bytes(cut), faiss::FaissException) << length;
            EXPECT_THROW(read_piped(cut), faiss::FaissException) << length;
        }
    }
}

TEST(IndexIO, AnyFlippedBitAnywhere) {
    for (const char* description : kSmall) {
        const Bytes bytes = small_file(description);
        for (size_t at = 0; at < bytes.size(); at++) {
            Bytes flipped = bytes;
            flipped[at] ^= 1 << (at % 8);
            EXPECT_THROW(read_bytes(flipped), faiss::FaissException) << at;
            // Through a pipe FAISS parses before anything can be checked, so
            // only what is behind its part is tried.
            if (at >= stock_length(bytes)) {
                EXPECT_THROW(read_piped(flipped), faiss::FaissException) << at;
            }
        }
    }
}

TEST(IndexIO, DamagedStampsAreNoPlainFiles) {
    for (const char* description : kSmall) {
        const Bytes bytes = small_file(description);
        // FAISS would read most of them as an index without a mixture.
        std::mt19937 random(1);
        for (int i = 0; i < 2100; i++) {
            Bytes damaged = bytes;
            for (int j = 0; j < 2; j++) {
                damaged[stock_begin(bytes) + 16 + random() % 16] =
                        uint8_t(random());
            }
            damaged[random() % damaged.size()] ^= uint8_t(1 + random() % 255);
            EXPECT_THROW(read_bytes(damaged), faiss::FaissException) << i;
        }
    }
}

TEST(IndexIO, ForeignFiles) {
    std::mt19937 random(1);
    for (size_t size : {0, 1, 31, 32, 33, 1000}) {
        Bytes noise(size);
        for (uint8_t& byte : noise) {
            byte = random();
        }
        EXPECT_THROW(read_bytes(noise), faiss::FaissException);
        EXPECT_THROW(read_piped(noise), faiss::FaissException);
    }
    // One file's trailer behind another's stock part.
    const Bytes a = written(*make("GMM32,Flat"));
    const Bytes b = written(*make("GMM32,SQ8"));
    Bytes mixed(a.begin(), a.begin() + stock_length(a));
    mixed.insert(mixed.end(), b.begin() + stock_length(b), b.end());
    EXPECT_THROW(read_bytes(mixed), faiss::FaissException);
    EXPECT_THROW(read_piped(mixed), faiss::FaissException);
    EXPECT_FAISS_ERROR(
            faiss_ext::read_index(static_cast<faiss::IOReader*>(nullptr)),
            "no reader");
    EXPECT_FAISS_ERROR(faiss_ext::write_index(nullptr, "x"), "no index");
}

} // namespace
} // namespace faiss_ext
