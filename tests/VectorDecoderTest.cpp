// Single entries, decoded as FAISS decodes them.
#include "faiss_ext/scan/VectorDecoder.h"

#include <omp.h>

#include <cmath>
#include <filesystem>
#include <thread>

#include <gtest/gtest.h>

#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexScalarQuantizer.h>

#include "IvfTestTools.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/ivflib.h"
#include "faiss_ext/scan/ExactDistances.h"
#include "quick_training.h"

namespace faiss_ext {
namespace {

void reconstruct_as_faiss(
        const faiss::IndexIVF& ivf, size_t list, size_t i, float* x) {
    using SQ = faiss::IndexIVFScalarQuantizer;
    if (auto sq = dynamic_cast<const SQ*>(&ivf)) {
        sq->SQ::reconstruct_from_offset(list, i, x);
    } else if (auto pq = dynamic_cast<const faiss::IndexIVFPQ*>(&ivf)) {
        pq->faiss::IndexIVFPQ::reconstruct_from_offset(list, i, x);
    } else {
        const auto& flat = dynamic_cast<const faiss::IndexIVFFlat&>(ivf);
        flat.faiss::IndexIVFFlat::reconstruct_from_offset(list, i, x);
    }
}

size_t threads_of_process() {
    const std::filesystem::directory_iterator tasks("/proc/self/task");
    return std::distance(begin(tasks), end(tasks));
}

void expect_as_reconstructed(const faiss::IndexIVF& ivf, const char* what) {
    const VectorDecoder decode(ivf);
    std::vector<float> expected(ivf.d), found(ivf.d);
    for (size_t list = 0; list < ivf.nlist; list += 3) {
        for (size_t i = 0; i < ivf.invlists->list_size(list); i += 5) {
            reconstruct_as_faiss(ivf, list, i, expected.data());
            ivf.reconstruct_from_offset(list, i, found.data());
            ASSERT_EQ(found, expected) << what;
            decode(list, i, found.data());
            for (int j = 0; j < ivf.d; j++) {
                ASSERT_NEAR(
                        found[j],
                        expected[j],
                        2e-6 * (1 + std::abs(expected[j])))
                        << what << ", list " << list << ", entry " << i;
            }
        }
    }
}

TEST(VectorDecoder, DecodesAsFaissDoes) {
    for (size_t d : {7, 32}) {
        const Vectors x = uniform(600, d, 3);
        for (const char* storage :
             {"Flat", "SQ8", "SQfp16", "SQ6", "SQ4", "PQ1x4"}) {
            for (auto metric :
                 {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
                const std::unique_ptr<faiss::Index> index(index_factory(
                        d, ("GMM16," + std::string(storage)).c_str(), metric));
                train_quickly(index.get());
                index->train(x.n, x.x.data());
                index->add(x.n, x.x.data());
                expect_as_reconstructed(
                        dynamic_cast<const faiss::IndexIVF&>(*index), storage);
            }
        }
    }
}

/// For each vector, which takes milliseconds where others use the processors.
TEST(VectorDecoder, ReconstructionsStartNoThreads) {
    const size_t d = 8, n = 500;
    const Vectors x = uniform(n, d, 3);
    for (const char* storage : {"SQ8", "SQ4", "PQ2x4", "Flat"}) {
        const std::unique_ptr<faiss::Index> index(
                index_factory(d, ("GMM4," + std::string(storage)).c_str()));
        train_quickly(index.get());
        index->train(x.n, x.x.data());
        index->add(x.n, x.x.data());
        const auto& ivf = dynamic_cast<const faiss::IndexIVF&>(*index);
        // A thread of its own has none of OpenMP's yet.
        std::thread([&] {
            omp_set_num_threads(3);
            const size_t before = threads_of_process();
            std::vector<float> found(n * d);
            ivf.reconstruct_n(0, n, found.data());
            EXPECT_EQ(threads_of_process(), before) << storage;
            omp_set_num_threads(1);
        }).join();
    }
}

/// Of a whole list by tables of its own, which round otherwise.
TEST(VectorDecoder, DistancesOfListsAreThoseOfTheirEntries) {
    const size_t d = 24;
    const Vectors x = uniform(900, d, 3), q = uniform(3, d, 4);
    for (const char* codec : {"PQ4x4", "PQ6", "SQ4", "Flat"}) {
        for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
            const std::unique_ptr<faiss::Index> index(index_factory(
                    d, ("GMM8," + std::string(codec)).c_str(), metric));
            train_quickly(index.get());
            index->train(x.n, x.x.data());
            index->add(x.n, x.x.data());
            const auto& ivf = dynamic_cast<const faiss::IndexIVF&>(*index);
            ExactDistances exact(ivf, *extract_gmm(index.get()));
            QueryCoarse coarse(ivf);
            for (size_t i = 0; i < q.n; i++) {
                exact.set_query(q.row(i), nullptr, coarse, 0);
                for (size_t list : {0, 3, 0, 7}) {
                    const size_t n = ivf.invlists->list_size(list);
                    std::vector<float> all(n);
                    exact.all(list, 0, n / 2, all.data());
                    exact.all(list, n / 2, n - n / 2, all.data() + n / 2);
                    for (size_t j = 0; j < n; j++) {
                        EXPECT_NEAR(all[j], exact(list, j), 3e-5)
                                << codec << " " << metric << " " << list;
                    }
                    for (size_t step : {1, 3, 20, 200}) {
                        std::vector<uint32_t> entries;
                        for (size_t j = 0; j < n; j += step) {
                            entries.push_back(uint32_t(j));
                        }
                        std::vector<float> some(entries.size());
                        exact.some(
                                list,
                                entries.data(),
                                some.size(),
                                some.size(),
                                some.data());
                        for (size_t j = 0; j < some.size(); j++) {
                            EXPECT_NEAR(some[j], all[entries[j]], 3e-5)
                                    << codec << " " << metric << " " << list;
                        }
                    }
                }
            }
        }
    }
}

TEST(VectorDecoder, QuantizersWithoutResiduals) {
    using SQ = faiss::ScalarQuantizer;
    Vectors x = uniform(600, 24, 4);
    for (float& v : x.x) {
        v = std::floor(128 + 120 * v); // what QT_8bit_direct can hold
    }
    for (auto type :
         {SQ::QT_8bit,
          SQ::QT_8bit_uniform,
          SQ::QT_8bit_direct,
          SQ::QT_4bit_uniform,
          SQ::QT_fp16}) {
        for (bool by_residual : {false, true}) {
            faiss::IndexFlatL2 means(x.d);
            faiss::IndexIVFScalarQuantizer ivf(
                    &means, x.d, 8, type, faiss::METRIC_L2, by_residual);
            ivf.train(x.n, x.x.data());
            ivf.add(x.n, x.x.data());
            expect_as_reconstructed(ivf, "of a quantizer");
        }
    }
}

} // namespace
} // namespace faiss_ext
