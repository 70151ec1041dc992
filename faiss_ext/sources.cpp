#include "faiss_ext/sources.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <numeric>
#include <vector>

#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVF.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/IndexReplicas.h>
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

/// Whether ids are needed in any case: without them FAISS's own additions put
/// what is in memory into a Hashtable (DirectMapAdd::ntotal is not set).
bool wants_ids(const faiss::Index* index) {
    auto ivf = dynamic_cast<const faiss::IndexIVF*>(index);
    return ivf && ivf->direct_map.type == faiss::DirectMap::Hashtable &&
            !dynamic_cast<const IVFGMM*>(ivf);
}

/** Blocks of vectors on their way into an index. Shards, also behind wrappers,
 * are filled one after another, each counted, where FAISS's own addition leaves
 * uncounted what the others have taken if one fails. */
class Filling {
public:
    Filling(faiss::Index& index, const idx_t* ids)
            : index(index), shards(shards_in(&index)) {
        if (!shards || !shards->successive_ids) {
            return;
        }
        in_one_call = true;
        parts = size_t(shards->count());
        for (faiss::Index* i = &index; ids && i != shards; i = *inside(i)) {
            ids = dynamic_cast<faiss::IndexIDMap*>(i) ? nullptr : ids;
        }
        for (size_t i = 0; i < parts; i++) {
            const idx_t ntotal = shards->at(int(i))->ntotal;
            FAISS_THROW_IF_NOT_FMT(
                    ntotal == 0 && !ids,
                    "add: shard %zu has ntotal = %zd, expected 0 and no ids: "
                    "those of the IndexShards are successive",
                    i,
                    ssize_t(ntotal));
        }
    }

    /// Whether shards take consecutive parts of all vectors, as their ids are.
    bool in_one_call = false;
    size_t parts = 1, part = 0; ///< the one that is filled

    void add(size_t n, const float* x, const idx_t* ids) {
        add_to(index, n, x, ids);
        if (failure) {
            std::rethrow_exception(failure);
        }
    }

    /// Shards are trained, which FAISS's reset() of them forgets. Not before:
    /// it throws where one of them is not.
    void finish() {
        if (shards) {
            shards->syncWithSubIndexes();
        }
    }

    /// Of shards and wrappers that were empty.
    void reset() {
        for (size_t i = 0; i < parts; i++) {
            shards->at(int(i))->reset();
        }
        shards->ntotal = 0;
        for (faiss::Index* i = &index; i != shards; i = *inside(i)) {
            i->ntotal = 0;
            if (auto map = dynamic_cast<faiss::IndexIDMap*>(i)) {
                map->id_map.clear();
            }
            if (auto map = dynamic_cast<faiss::IndexIDMap2*>(i)) {
                map->rev_map.clear();
            }
            if (auto refine = dynamic_cast<faiss::IndexRefine*>(i)) {
                refine->refine_index->reset();
            }
        }
    }

private:
    static faiss::IndexShards* shards_in(faiss::Index* index) {
        return dynamic_cast<faiss::IndexShards*>(*unwrap(&index));
    }

    /// Whether wrappers and replicas are filled as they would do it, but here:
    /// what is in them is shards, or wants ids.
    static bool step_by_step(faiss::Index& to) {
        const std::vector<faiss::Index*> parts = innermost(&to);
        return shards_in(&to) ||
                std::any_of(parts.begin(), parts.end(), wants_ids);
    }

    /// Returns how many are in: the first ones, less than n if there is a
    /// failure.
    size_t add_to(
            faiss::Index& to, size_t n, const float* x, const idx_t* ids) {
        auto replicas = dynamic_cast<faiss::IndexReplicas*>(&to);
        auto pre = dynamic_cast<faiss::IndexPreTransform*>(&to);
        auto map = dynamic_cast<faiss::IndexIDMap*>(&to);
        auto refine = dynamic_cast<faiss::IndexRefine*>(&to);
        size_t in = 0;
        if (&to == shards) {
            in = in_one_call ? add_to_part(*shards->at(int(part)), n, x, ids)
                             : add_to_shards(n, x, ids);
        } else if (!step_by_step(to)) {
            return add_to_one(to, n, x, ids);
        } else if (replicas && !ids) {
            in = n;
            for (int i = 0; i < replicas->count() && !failure; i++) {
                in = add_to_part(*replicas->at(i), n, x, nullptr);
            }
        } else if (pre) {
            const float* y = pre->apply_chain(idx_t(n), x);
            const std::unique_ptr<const float[]> owner(y != x ? y : nullptr);
            in = add_to(*pre->index, n, y, ids);
        } else if (map && ids) {
            in = add_to(*map->index, n, x, nullptr);
            auto map2 = dynamic_cast<faiss::IndexIDMap2*>(map);
            for (size_t i = 0; i < in; i++) {
                if (map2) {
                    map2->rev_map[ids[i]] = idx_t(map->id_map.size());
                }
                map->id_map.push_back(ids[i]);
            }
        } else if (refine && !ids) {
            in = add_to(*refine->base_index, n, x, nullptr);
            refine->refine_index->add(idx_t(in), x);
        } else {
            return add_to_one(to, n, x, ids);
        }
        to.ntotal += idx_t(in);
        return in;
    }

    static std::vector<idx_t> successive_from(idx_t first, size_t n) {
        std::vector<idx_t> out(n);
        std::iota(out.begin(), out.end(), first);
        return out;
    }

    size_t add_to_shards(size_t n, const float* x, const idx_t* ids) {
        std::vector<idx_t> own;
        if (!ids) {
            own = successive_from(shards->ntotal, n);
            ids = own.data();
        }
        const size_t count = size_t(shards->count());
        size_t in = 0;
        for (size_t i = 0; i < count && !failure; i++) {
            const size_t from = i * n / count,
                         share = (i + 1) * n / count - from;
            if (share > 0) {
                in += add_to_part(
                        *shards->at(int(i)),
                        share,
                        x + from * shards->d,
                        ids + from);
            }
        }
        return in;
    }

    /// Of shards or replicas, which count what the others took.
    size_t add_to_part(
            faiss::Index& to, size_t n, const float* x, const idx_t* ids) {
        try {
            return add_to(to, n, x, ids);
        } catch (...) {
            failure = std::current_exception();
            return 0;
        }
    }

    size_t add_to_one(
            faiss::Index& to, size_t n, const float* x, const idx_t* ids) {
        std::vector<idx_t> own;
        if (!ids && wants_ids(&to)) {
            own = successive_from(to.ntotal, n);
            ids = own.data();
        }
        try {
            ids ? to.add_with_ids(idx_t(n), x, ids) : to.add(idx_t(n), x);
            return n;
        } catch (...) {
            failure = std::current_exception();
            return 0;
        }
    }

    faiss::Index& index;
    faiss::IndexShards* const shards; ///< behind wrappers, or nullptr
    std::exception_ptr failure;
};

/// Shards and replicas without any take vectors and have none.
void check_parts(const char* call, faiss::Index* index) {
    FAISS_THROW_IF_NOT_FMT(
            !innermost(index).empty(), "%s: the index has no parts", call);
}

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
    check_parts("train", index);
    as_faiss_exception([&] { train_any(*index, source); });
}

void add(
        faiss::Index* index,
        const gmm::VectorSource& source,
        const idx_t* ids) {
    check_dimension(*index, source);
    check_parts("add", index);
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
    Filling filling(*index, ids);
    const auto add_rows = [&](size_t from, size_t end) {
        for (size_t begin = from; begin < end; begin += rows) {
            const size_t n = std::min(rows, end - begin);
            as_faiss_exception(
                    [&] { source.rows(begin, n, scratch).to_float(x.data()); });
            check_storable(source, begin, n, x.data());
            filling.add(n, x.data(), ids ? ids + begin : nullptr);
        }
    };
    try {
        for (size_t i = 0; i < filling.parts; i++) {
            filling.part = i;
            add_rows(
                    i * source.n / filling.parts,
                    (i + 1) * source.n / filling.parts);
        }
    } catch (const std::exception& e) {
        if (filling.in_one_call) { // what is in cannot be added to
            filling.reset();
        }
        if (index->ntotal == before) {
            throw;
        }
        const std::string why = without_place(e.what());
        FAISS_THROW_FMT(
                "add: %zd of %zu vectors are in, and then: %s",
                size_t(index->ntotal - before),
                source.n,
                why.c_str());
    }
    for (const auto& addition : additions) {
        addition->finish();
    }
    filling.finish();
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
