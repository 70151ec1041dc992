// What is refused for what an index is or holds: fields, codecs, maps, merges,
// subsets, copies, and codes of other indexes.

#include <cmath>

#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexScalarQuantizer.h>
#include <faiss/impl/io.h>

#include "RefusedCalls.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/IndexIVFRaBitQGMM.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/ivflib.h"
#include "faiss_ext/store/list_storage.h"
#include "quick_training.h"

namespace faiss_ext {
namespace {

TEST(IndexIVFGMMErrors, TheCovarianceIsOneOfThree) {
    IndexIVFFlatGMM index(base().d, kLists);
    index.covariance = gmm::Covariance(9);
    expect_refused(index, {"covariance = 9"}, [&] {
        index.train(base().n, base().x.data());
    });
}

TEST(IndexIVFGMMErrors, TheMetricIsOneOfTwo) {
    IndexIVFFlatGMM index(base().d, kLists, faiss::METRIC_Linf);
    expect_refused(index, {"metric = 3", "METRIC_L2"}, [&] {
        index.train(base().n, base().x.data());
    });
}

/// Before anything is in.
TEST(IndexIVFGMMErrors, FieldsAreInTheirRangesWhenVectorsAreAdded) {
    auto index = trained(base(), kLists);
    index->code_bits = 3;
    expect_refused(*index, {"code_bits = 3"}, [&] {
        index->add(100, base().x.data());
    });
    index->code_bits = 0;
    index->max_assign = 2;
    index->cells_per_list = 1;
    for (float ratio : {0.0f, -1.0f, NAN}) {
        index->assign_ratio = ratio;
        EXPECT_FAISS_ERROR(index->add(100, base().x.data()), "assign_ratio");
    }
    index->assign_ratio = 1.3f;
    for (float threshold : {-1.0f, 2.0f, NAN}) {
        index->assign_threshold = threshold;
        EXPECT_FAISS_ERROR(
                index->add(100, base().x.data()), "assign_threshold");
    }
    EXPECT_EQ(index->ntotal, 0);
    // what only additions read keeps nobody from searching
    index->assign_threshold = 0;
    index->add(base().n, base().x.data());
    index->assign_ratio = INFINITY;
    index->assign_threshold = -1;
    EXPECT_NO_THROW(find(*index, queries(), 5));
    // nor is anything merged that cells could not be made of
    auto full = calibrated(), into = trained(base(), kLists);
    into->code_bits = 3;
    const idx_t n = full->ntotal;
    EXPECT_FAISS_ERROR(into->merge_from(*full, 0), "code_bits = 3");
    EXPECT_FAISS_ERROR(
            full->copy_subset_to(*into, faiss_ext::subset_type_t(0), 0, 9),
            "code_bits = 3");
    EXPECT_EQ(full->ntotal, n);
    EXPECT_EQ(into->ntotal, 0);
}

TEST(IndexIVFGMMErrors, SubsetsAreOfATrainedIndexAndInOrder) {
    auto index = calibrated();
    IndexIVFFlatGMM untrained(base().d, kLists);
    using Kind = faiss_ext::subset_type_t;
    EXPECT_FAISS_ERROR(
            index->copy_subset_to(untrained, Kind(0), 0, 10), "trained");
    EXPECT_EQ(untrained.ntotal, 0);
    auto other = trained(base(), kLists);
    EXPECT_FAISS_ERROR(
            index->copy_subset_to(*other, Kind(2), 20, 10), "a2 = 10");
    EXPECT_FAISS_ERROR(index->copy_subset_to(*other, Kind(1), 0, 0), "a1 = 0");
    EXPECT_EQ(other->ntotal, 0);
}

/// Codes about other means, or by another codec, are other vectors.
TEST(IndexIVFGMMErrors, SubsetsAreOfTheSameTraining) {
    using Kind = faiss_ext::subset_type_t;
    for (const char* description : {"GMM16,Flat", "GMM16,PQ8x4", "GMM16,SQ8"}) {
        const auto make = [&](const Vectors& x) {
            std::unique_ptr<faiss::Index> index(
                    index_factory(int(x.d), description, faiss::METRIC_L2));
            index->train(x.n, x.x.data());
            return index;
        };
        const auto from = make(rows_of(base(), 0, 1000));
        from->add(500, base().x.data());
        auto& ivf = dynamic_cast<faiss::IndexIVF&>(*from);
        const auto same = clone_index(from.get());
        same->reset();
        auto& same_ivf = dynamic_cast<faiss::IndexIVF&>(*same);
        ivf.copy_subset_to(same_ivf, Kind(0), 0, 200);
        EXPECT_EQ(same->ntotal, 200) << description;
        const auto other = make(rows_of(base(), 1000, 2000));
        auto& other_ivf = dynamic_cast<faiss::IndexIVF&>(*other);
        EXPECT_FAISS_ERROR(
                ivf.copy_subset_to(other_ivf, Kind(0), 0, 200), "means");
        EXPECT_EQ(other->ntotal, 0) << description;
    }
    // as many bytes, of another quantizer; and of another metric
    const size_t d = base().d;
    std::unique_ptr<faiss::Index> index(
            index_factory(int(d), "GMM16,SQ8", faiss::METRIC_L2));
    index->train(1000, base().x.data());
    index->add(100, base().x.data());
    auto& sq = dynamic_cast<faiss::IndexIVF&>(*index);
    faiss::IndexIVFPQ pq(sq.quantizer, d, kLists, d, 8);
    pq.train(1000, base().x.data());
    EXPECT_FAISS_ERROR(
            sq.copy_subset_to(pq, Kind(0), 0, 10), "quantizers of residuals");
    faiss::IndexIVFScalarQuantizer ip(
            sq.quantizer,
            d,
            kLists,
            faiss::ScalarQuantizer::QT_8bit,
            faiss::METRIC_INNER_PRODUCT);
    ip.is_trained = true;
    EXPECT_FAISS_ERROR(sq.copy_subset_to(ip, Kind(0), 0, 10), "metric");
}

/// What fp16 makes infinite is named and changes nothing.
TEST(IndexIVFGMMErrors, ValuesThatTheCodecHasNoRoomFor) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        std::unique_ptr<faiss::Index> index(
                index_factory(int(base().d), "GMM16,SQfp16", metric));
        index->train(base().n, base().x.data());
        index->add(1500, base().x.data());
        Vectors wide = rows_of(base(), 0, 1200);
        wide.x[700 * wide.d + 5] = 1e5f;
        EXPECT_FAISS_ERROR(index->add(1200, wide.x.data()), "holds 100000");
        EXPECT_EQ(index->ntotal, 1500);
        faiss::VectorIOWriter writer;
        faiss_ext::write_index(index.get(), &writer);
        wide.x[700 * wide.d + 5] = 6e4f;
        index->add(1200, wide.x.data());
        extract_gmm(index.get())->calibrate(300, nullptr);
        faiss_ext::write_index(index.get(), &writer);
    }
}

/// What the caller takes away is named, not presumed.
TEST(IndexIVFGMMErrors, CellsAreThoseThatItWasFilledWith) {
    for (const char* description : {"GMM16,Flat", "GMM16,RaBitQ4"}) {
        std::unique_ptr<faiss::Index> index(
                index_factory(int(base().d), description, faiss::METRIC_L2));
        index->train(base().n, base().x.data());
        index->add(2000, base().x.data());
        IVFGMM& gmm = *extract_gmm(index.get());
        const PairCells kept = gmm.cells;
        if (description[6] == 'F') {
            gmm.cells.codes = CellCodes();
        } else {
            gmm.cells = PairCells();
        }
        EXPECT_FAISS_ERROR(find(*index, queries(), 10), "cells");
        EXPECT_FAISS_ERROR(index->add(10, base().x.data()), "cells");
        EXPECT_FAISS_ERROR(
                index->remove_ids(faiss::IDSelectorRange(0, 10)), "cells");
        gmm.cells = kept;
        EXPECT_GE(find(*index, queries(), 10).ids[0], 0);
    }
}

TEST(IndexIVFGMMErrors, AnArrayMapTakesNoIdsAndHasNoGaps) {
    auto index = calibrated();
    index->set_direct_map_type(faiss::DirectMap::Array);
    const std::vector<idx_t> ids = {7000, 7001};
    expect_refused(*index, {}, [&] {
        index->add_with_ids(2, base().x.data(), ids.data());
    });
    expect_refused(*index, {"Array"}, [&] {
        index->remove_ids(faiss::IDSelectorRange(0, 10));
    });
}

TEST(IndexIVFGMMErrors, OnlyTheSameKindMerges) {
    auto index = calibrated();
    faiss::IndexFlatL2 coarse(base().d);
    faiss::IndexIVFFlat stock(&coarse, base().d, kLists);
    stock.train(base().n, base().x.data());
    stock.add(100, base().x.data());
    expect_refused(*index, {"other is faiss::IndexIVFFlat, expected"}, [&] {
        index->merge_from(stock, 0);
    });
    EXPECT_EQ(stock.ntotal, 100);
    auto other_means = trained(rows_of(base(), 1000, 2000), kLists);
    other_means->add(100, base().x.data());
    expect_refused(*index, {"means differ"}, [&] {
        index->merge_from(*other_means, 0);
    });
    EXPECT_EQ(other_means->ntotal, 100);
    auto copies = trained(base(), kLists);
    copies->max_assign = 2;
    copies->add(100, base().x.data());
    expect_refused(
            *index, {"max_assign = 2"}, [&] { index->merge_from(*copies, 0); });
    expect_refused(
            *index, {"this index itself, expected another faiss_ext::"}, [&] {
                index->merge_from(*index, 0);
            });
    IndexIVFFlatGMM nothing, more; // FAISS's constructors of no arguments
    EXPECT_FAISS_ERROR(nothing.check_compatible_for_merge(more), "");
    EXPECT_FAISS_ERROR(nothing.merge_from(more, 0), "");
}

TEST(IndexIVFGMMErrors, IdsBeyond64BitsAreNotMerged) {
    auto index = calibrated();
    const auto other = trained(base(), kLists);
    const idx_t id = std::numeric_limits<idx_t>::max() - 3;
    other->add_with_ids(1, base().x.data(), &id);
    expect_refused(
            *index, {"add_id = 4"}, [&] { index->merge_from(*other, 4); });
    EXPECT_EQ(other->ntotal, 1);
    index->merge_from(*other, 3);
}

TEST(IndexIVFGMMErrors, CopiesAreDecidedOnBeforeAdding) {
    auto index = calibrated();
    for (size_t assign : {size_t(0), size_t(2)}) {
        index->max_assign = assign;
        EXPECT_FAISS_ERROR(
                index->add(10, base().x.data()),
                "max_assign = " + std::to_string(assign));
        index->max_assign = 1;
        EXPECT_EQ(index->ntotal, idx_t(base().n));
    }
    auto plain = trained(base(), kLists);
    plain->cells_per_list = 1;
    plain->add(100, base().x.data());
    plain->max_assign = 2;
    EXPECT_FAISS_ERROR(plain->add(100, base().x.data()), "max_assign = 2");
    EXPECT_FAISS_ERROR(find(*plain, queries(), 5), "max_assign = 2");
    plain->max_assign = 1;
    expect_model(*plain, model_of(rows_of(base(), 0, 100)), queries());
}

TEST(IndexIVFGMMErrors, AnEmptiedIndexTakesAnotherNumberOfCopies) {
    auto index = trained(base(), kLists);
    for (size_t assign : {2, 1, 3}) {
        index->max_assign = assign;
        index->add(base().n, base().x.data());
        EXPECT_EQ(index->cells.empty(), assign > 1);
        check_consistent(*index, *index, model_of(base()));
        index->remove_ids(faiss::IDSelectorRange(0, base().n));
        EXPECT_EQ(index->ntotal, 0);
    }
}

/// ntotal counts what add_core put into no list, for which FAISS's
/// copy_subset_to ends the process.
TEST(IndexIVFGMMErrors, VectorsInNoList) {
    using Kind = faiss_ext::subset_type_t;
    for (const char* description : {"GMM16,Flat", "GMM16,RaBitQ"}) {
        SCOPED_TRACE(description);
        std::unique_ptr<faiss::Index> index(
                index_factory(int(base().d), description, faiss::METRIC_L2));
        index->train(1000, base().x.data());
        const auto other = clone_index(index.get());
        auto& from = dynamic_cast<faiss::IndexIVF&>(*index);
        auto& to = dynamic_cast<faiss::IndexIVF&>(*other);
        std::vector<idx_t> homes(100);
        from.quantizer->assign(100, base().x.data(), homes.data());
        homes[3] = homes[50] = -1;
        from.add_core(100, base().x.data(), nullptr, homes.data());
        EXPECT_EQ(from.ntotal, 100);
        from.copy_subset_to(to, Kind(0), 0, 60);
        EXPECT_EQ(to.ntotal, 58);
        EXPECT_FAISS_ERROR(from.copy_subset_to(to, Kind(2), 0, 99), "a2 = 99");
        from.copy_subset_to(to, Kind(2), 0, 98);
        EXPECT_EQ(to.ntotal, 58 + 98);
        if (has_vectors(from)) {
            faiss::IndexIVFFlat stock(from.quantizer, base().d, 16);
            stock.is_trained = true;
            from.copy_subset_to(stock, Kind(0), 0, 100);
            EXPECT_EQ(stock.ntotal, 98);
        }
    }
    // and where all others are gone, vectors may still have copies
    auto copies = trained(base(), kLists);
    copies->max_assign = 2;
    const std::vector<idx_t> nowhere(5, -1);
    static_cast<faiss::IndexIVF&>(*copies).add_core(
            5, base().x.data(), nullptr, nowhere.data());
    EXPECT_EQ(find(*copies, queries(), 5).ids[0], -1);
    copies->add(100, base().x.data());
    copies->remove_ids(faiss::IDSelectorRange(0, 200));
    EXPECT_EQ(find(*copies, queries(), 5).ids[0], -1);
    EXPECT_EQ(find(*clone_index(copies.get()), queries(), 5).ids[0], -1);
    copies->add(100, base().x.data());
    EXPECT_GE(find(*copies, queries(), 5).ids[0], 0);
}

/// FAISS throws in a parallel region.
TEST(IndexIVFGMMErrors, CodesOfNoList) {
    for (const char* description : {"GMM5,Flat", "GMM5,SQ8", "GMM5,PQ4x4"}) {
        std::unique_ptr<faiss::Index> index(
                index_factory(base().d, description));
        train_quickly(index.get());
        index->train(base().n, base().x.data());
        const size_t size = index->sa_code_size();
        std::vector<uint8_t> bytes(3 * size);
        std::vector<float> x(base().row(0), base().row(3)), out(3 * base().d);
        index->sa_encode(3, x.data(), bytes.data());
        bytes[2 * size] = 5;
        EXPECT_FAISS_ERROR(
                index->sa_decode(3, bytes.data(), out.data()),
                "bytes: code 2 is of list 5, expected below nlist = 5");
        x[base().d] = std::nanf("");
        EXPECT_FAISS_ERROR(
                index->sa_encode(3, x.data(), bytes.data()), "x: row 1 has");
    }
}

TEST(IndexIVFGMMErrors, NoPlaceForAVectorAndNoLists) {
    std::unique_ptr<faiss::Index> index(index_factory(base().d, "GMM5,Flat"));
    train_quickly(index.get());
    index->train(base().n, base().x.data());
    index->add(20, base().x.data());
    auto& ivf = dynamic_cast<faiss::IndexIVF&>(*index);
    ivf.set_direct_map_type(faiss::DirectMap::Hashtable);
    EXPECT_FAISS_ERROR(index->reconstruct(3, nullptr), "recons = nullptr");
    std::vector<float> out(20 * base().d);
    ivf.replace_invlists(nullptr);
    EXPECT_FAISS_ERROR(index->reconstruct(3, out.data()), "invlists = nullpt");
    EXPECT_FAISS_ERROR(
            index->reconstruct_n(0, 20, out.data()), "invlists = nullptr");
    EXPECT_NO_THROW(index->reconstruct_n(0, 0, nullptr));
}

} // namespace
} // namespace faiss_ext
