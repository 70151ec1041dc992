#include "faiss_ext/sources.h"

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexShards.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/ThreadedIndex.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/impl/fit_mixture.h"
#include "faiss_ext/ivflib.h"
#include "faiss_ext/store/add.h"
#include "faiss_ext/store/maintain.h"

namespace faiss_ext {

namespace {

/// Values of vectors that are added at once, at most.
constexpr size_t kBlockValues = kAddBlock * 1024;
constexpr uint64_t kSeed = 1234; // FAISS's own

void check_dimension(const faiss::Index& index, const gmm::VectorSource& x) {
    FAISS_THROW_IF_NOT_FMT(
            x.d == size_t(index.d),
            "source: dimension %zu, expected d = %d",
            x.d,
            index.d);
}

void train_any(faiss::Index& index, const gmm::VectorSource& source);

void train_chain(
        faiss::IndexPreTransform& index, const gmm::VectorSource& source) {
    const auto& chain = index.chain;
    size_t untrained = 0;
    for (size_t i = 0; i < chain.size(); i++) {
        untrained = chain[i]->is_trained ? untrained : i + 1;
    }
    if (untrained > 0) {
        Sample sample(source, kSampleRows, kSeed);
        for (size_t i = 0; i < untrained; i++) {
            if (!chain[i]->is_trained) {
                chain[i]->train(sample.n, sample.x.data());
            }
            std::vector<float> y(sample.n * chain[i]->d_out);
            chain[i]->apply_noalloc(sample.n, sample.x.data(), y.data());
            sample.x = std::move(y);
        }
    }
    const auto transformed = gmm::mapped_source(
            source, index.index->d, [&](size_t n, const float* x, float* out) {
                const float* y = index.apply_chain(n, x);
                const std::unique_ptr<const float[]> owner(
                        y != x ? y : nullptr);
                std::copy_n(y, n * index.index->d, out);
            });
    train_any(*index.index, *transformed);
    index.is_trained = true;
}

void train_any(faiss::Index& index, const gmm::VectorSource& source) {
    check_dimension(index, source);
    if (auto pre = dynamic_cast<faiss::IndexPreTransform*>(&index)) {
        train_chain(*pre, source);
    } else if (auto refine = dynamic_cast<faiss::IndexRefine*>(&index)) {
        train_any(*refine->base_index, source);
        train_any(*refine->refine_index, source);
        refine->is_trained = true;
    } else if (faiss::Index** inner = inside(&index)) {
        train_any(**inner, source);
        index.is_trained = (*inner)->is_trained;
    } else if (auto gmm = dynamic_cast<IVFGMM*>(&index)) {
        gmm->train_from(source);
    } else if (
            auto parts =
                    dynamic_cast<faiss::ThreadedIndex<faiss::Index>*>(&index)) {
        for (int i = 0; i < parts->count(); i++) {
            train_any(*parts->at(i), source);
        }
        index.is_trained = true;
    } else {
        auto ivf = dynamic_cast<faiss::IndexIVF*>(&index);
        const size_t most = ivf
                ? std::max(
                          kSampleRows,
                          ivf->nlist * size_t(ivf->cp.max_points_per_centroid))
                : kSampleRows;
        const Sample sample(source, most, kSeed);
        index.train(sample.n, sample.x.data());
    }
}

/// Additions to a GMM index that count as one: cells and calibration wait.
class OneAddition {
public:
    explicit OneAddition(IVFGMM& gmm)
            : gmm(gmm),
              growth({dynamic_cast<faiss::IndexIVF&>(gmm), gmm}, "add"),
              cells_per_list(gmm.cells_per_list),
              calibrate_on_add(gmm.calibrate_on_add) {
        if (dynamic_cast<faiss::IndexIVF&>(gmm).ntotal == 0) {
            gmm.cells_per_list = 1;
        }
        gmm.calibrate_on_add = false;
    }
    OneAddition(const OneAddition&) = delete;
    ~OneAddition() {
        restore();
    }

    void finish() {
        restore();
        growth.finish();
    }

private:
    void restore() {
        gmm.cells_per_list = cells_per_list;
        gmm.calibrate_on_add = calibrate_on_add;
    }

    IVFGMM& gmm;
    Growth growth;
    const size_t cells_per_list;
    const bool calibrate_on_add;
};

/// FAISS's reset() of shards and replicas forgets that their parts are.
bool is_trained(faiss::Index& index) {
    auto parts = dynamic_cast<faiss::ThreadedIndex<faiss::Index>*>(&index);
    bool all = parts && parts->count() > 0;
    for (int i = 0; all && i < parts->count(); i++) {
        all = is_trained(*parts->at(i));
    }
    return index.is_trained || all;
}

} // namespace

void train(faiss::Index* index, const gmm::VectorSource& source) {
    as_faiss_exception([&] { train_any(*index, source); });
}

void add(
        faiss::Index* index,
        const gmm::VectorSource& source,
        const idx_t* ids) {
    check_dimension(*index, source);
    FAISS_THROW_IF_NOT_MSG(is_trained(*index), "the index is not trained");
    std::vector<std::unique_ptr<OneAddition>> additions;
    for (IVFGMM* gmm : extract_gmms(index)) {
        additions.push_back(std::make_unique<OneAddition>(*gmm));
    }
    const size_t d = source.d;
    const size_t rows = std::clamp(kBlockValues / d, size_t(1), kAddBlock);
    std::vector<float> x(std::min(rows, source.n) * d);
    std::vector<std::byte> scratch;
    const idx_t before = index->ntotal;
    auto shards = dynamic_cast<faiss::IndexShards*>(index);
    const bool in_one_call = shards && shards->successive_ids;
    const size_t parts = in_one_call ? size_t(shards->count()) : 0;
    std::vector<idx_t> block_ids;
    const auto add_block = [&](faiss::Index& to, size_t begin, size_t n) {
        const idx_t* of_block = ids ? ids + begin : nullptr;
        const size_t count = &to == shards ? size_t(shards->count()) : 0;
        if (count > 0) {
            // One after another, each counted, where FAISS's own addition
            // leaves uncounted what the others have taken if one fails.
            if (!ids) {
                block_ids.resize(n);
                std::iota(
                        block_ids.begin(),
                        block_ids.end(),
                        before + idx_t(begin));
                of_block = block_ids.data();
            }
            for (size_t i = 0; i < count; i++) {
                const size_t from = i * n / count, end = (i + 1) * n / count;
                if (from < end) {
                    shards->at(int(i))->add_with_ids(
                            end - from, &x[from * d], of_block + from);
                    shards->ntotal += idx_t(end - from);
                }
            }
        } else if (ids) {
            to.add_with_ids(n, x.data(), of_block);
        } else {
            to.add(n, x.data());
        }
    };
    const auto add_rows = [&](faiss::Index& to, size_t from, size_t end) {
        for (size_t begin = from; begin < end; begin += rows) {
            const size_t n = std::min(rows, end - begin);
            as_faiss_exception(
                    [&] { source.rows(begin, n, scratch).to_float(x.data()); });
            check_storable(source, begin, n, x.data());
            add_block(to, begin, n);
        }
    };
    for (size_t i = 0; i < parts; i++) {
        FAISS_THROW_IF_NOT_FMT(
                shards->at(int(i))->ntotal == 0 && !ids,
                "add: shard %zu has ntotal = %zd, expected 0 and no ids: those "
                "of the IndexShards are successive",
                i,
                ssize_t(shards->at(int(i))->ntotal));
    }
    try {
        for (size_t i = 0; i < parts; i++) {
            add_rows(
                    *shards->at(int(i)),
                    i * source.n / parts,
                    (i + 1) * source.n / parts);
        }
        if (in_one_call) {
            shards->syncWithSubIndexes();
        } else {
            add_rows(*index, 0, source.n);
        }
    } catch (const std::exception& e) {
        for (size_t i = 0; i < parts; i++) { // what is in cannot be added to
            shards->at(int(i))->reset();
        }
        if (index->ntotal == before) {
            throw;
        }
        FAISS_THROW_FMT(
                "add: %zd of %zu vectors are in, and then: %s",
                size_t(index->ntotal - before),
                source.n,
                e.what());
    }
    for (const auto& addition : additions) {
        addition->finish();
    }
}

void calibrate(
        faiss::Index* index, const gmm::VectorSource& queries, size_t k) {
    check_dimension(*index, queries);
    as_faiss_exception([&] {
        std::vector<float> x(queries.n * queries.d);
        std::vector<std::byte> scratch;
        queries.rows(0, queries.n, scratch).to_float(x.data());
        calibrate(index, queries.n, x.data(), k);
    });
}

} // namespace faiss_ext
