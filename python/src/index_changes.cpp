// The methods of an index that change what is in it; index.cpp has the others.
#include <string>
#include <typeinfo>
#include <utility>
#include <vector>

#include <nanobind/stl/string.h>

#include <faiss/IndexIDMap.h>
#include <faiss/IndexIVFFlat.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/VectorTransform.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/invlists/BlockInvertedLists.h>

#include "bindings.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/impl/faiss_compat.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/ivflib.h"
#include "faiss_ext/sources.h"
#include "interrupt.h"
#include "training.h"

namespace faiss_ext_python {

namespace {

void train(PyIndex& self, Matrix<const float> x) {
    check_rows(*self.index, "x", x);
    const LongCall long_call;
    train_or_leave(*self.index, x.shape(0), [&] {
        self.index->train(x.shape(0), x.data());
    });
}

/** Behind wrappers, which count vectors when the index in them returns, a block
 * at a time: an interrupt between two leaves them as long as it.
 *
 * @param ids  or nullptr
 */
void add_rows(PyIndex& self, Matrix<const float> x, const idx_t* ids) {
    check_rows(*self.index, "x", x);
    FAISS_THROW_IF_NOT_MSG(
            self.index->is_trained,
            "the index is not trained; train comes first");
    check_graph(faiss_ext::unwrap(self.index.get()), "x", x.shape(0));
    {
        const LongCall long_call;
        faiss::Index& index = *self.index;
        const size_t n = x.shape(0);
        const bool gmm = faiss_ext::extract_gmm(&index);
        if (!gmm) { // which looks itself; others end the process
            faiss_ext::check_storable("x", n, x.shape(1), x.data());
        }
        auto ivf =
                dynamic_cast<const faiss::IndexIVF*>(faiss_ext::unwrap(&index));
        // to which FAISS's additions without ids give wrong ones
        const bool hashed = !gmm && ivf &&
                ivf->direct_map.type == faiss::DirectMap::Hashtable;
        if (n > 0 &&
            (hashed || (gmm && !dynamic_cast<faiss::IndexIVF*>(&index)))) {
            const auto source = gmm::memory_source(x.data(), n, index.d);
            faiss_ext::add(&index, *source, ids);
        } else if (ids) {
            index.add_with_ids(idx_t(n), x.data(), ids);
        } else {
            index.add(idx_t(n), x.data());
        }
    }
    raise_interrupt();
}

void add(PyIndex& self, Matrix<const float> x) {
    add_rows(self, x, nullptr);
}

void add_with_ids(
        PyIndex& self, Matrix<const float> x, Vector<const int64_t> ids) {
    check_ids(x.shape(0), ids);
    add_rows(self, x, ids.data());
}

void update_vectors(
        PyIndex& self, Vector<const int64_t> ids, Matrix<const float> x) {
    check_rows(*self.index, "x", x);
    check_ids(x.shape(0), ids);
    faiss::IndexIVF& ivf = self.ivf("update_vectors");
    FAISS_THROW_IF_NOT_MSG(
            &ivf == self.index.get(),
            "update_vectors: the index is wrapped; remove_ids and add_with_ids "
            "do the same");
    FAISS_THROW_IF_NOT_MSG(
            !ivf.direct_map.no(),
            "update_vectors: the index has no direct map; "
            "set_direct_map(\"hashtable\") makes one");
    const LongCall long_call;
    ivf.update_vectors(int(x.shape(0)), ids.data(), x.data());
}

/// Whether lists are fast scan's, in which FAISS neither removes nor appends
/// codes of another index, until some version between these: it ends the
/// process.
bool has_fixed_blocks([[maybe_unused]] const faiss::IndexIVF& ivf) {
#if FAISS_EXT_FAISS_VERSION < 11500
    return dynamic_cast<const faiss::BlockInvertedLists*>(ivf.invlists);
#else
    return false;
#endif
}

/// Throws for a map of ids around lists, which takes their ids for places, and
/// for lists that nothing can be removed from.
void check_removes(const faiss::Index& index) {
    const faiss::Index* inner = behind_transforms(&index);
    FAISS_THROW_IF_NOT_MSG(
            !dynamic_cast<const faiss::IndexIDMap*>(inner) ||
                    !dynamic_cast<const faiss::IndexIVF*>(
                            faiss_ext::unwrap(inner)),
            "remove_ids: faiss's IndexIDMap gives wrong ids once something was "
            "removed from the IVF index in it; swap_to_gmm makes an index that "
            "keeps them itself");
    auto ivf = dynamic_cast<const faiss::IndexIVF*>(faiss_ext::unwrap(inner));
    FAISS_THROW_IF_NOT_FMT(
            !ivf || !has_fixed_blocks(*ivf),
            "remove_ids: FAISS %s removes nothing from a fast scan index "
            "(PQ4x4fs), expected other codes",
            FAISS_VERSION);
}

size_t remove_ids(PyIndex& self, const Selector& sel) {
    const faiss::Index& index = *self.index;
    check_removes(index);
    FAISS_THROW_IF_NOT_MSG(
            index.is_trained,
            "remove_ids: the index is not trained; train comes first");
    const LongCall long_call;
    return self.index->remove_ids(*sel.selector);
}

bool same_chain(
        const faiss::IndexPreTransform& a, const faiss::IndexPreTransform& b) {
    if (a.chain.size() != b.chain.size()) {
        return false;
    }
    for (size_t i = 0; i < a.chain.size(); i++) {
        const faiss::VectorTransform &x = *a.chain[i], &y = *b.chain[i];
        auto linear_x = dynamic_cast<const faiss::LinearTransform*>(&x);
        auto linear_y = dynamic_cast<const faiss::LinearTransform*>(&y);
        if (typeid(x) != typeid(y) || x.d_in != y.d_in || x.d_out != y.d_out ||
            (linear_x &&
             (linear_x->A != linear_y->A || linear_x->b != linear_y->b))) {
            return false;
        }
    }
    return true;
}

void check_same(const char* name, size_t of_this, size_t of_other) {
    FAISS_THROW_IF_NOT_FMT(
            of_other == of_this,
            "other: %s = %zu, expected %zu as of this index",
            name,
            of_other,
            of_this);
}

/// Throws for what FAISS calls by names of its own, and where it crashes.
void check_merges(const faiss::IndexIVF& to, const faiss::IndexIVF& from) {
    FAISS_THROW_IF_NOT_MSG(
            to.is_trained,
            "merge_from: this index is not trained; train comes first");
    FAISS_THROW_IF_NOT_MSG(
            from.is_trained,
            "other: it is not trained, expected a copy of this index as it was "
            "trained");
    check_same("d", to.d, from.d);
    check_same("metric_type", to.metric_type, from.metric_type);
    check_same("nlist", to.nlist, from.nlist);
    const std::string name = faiss_ext::reverse_index_factory(&to);
    const std::string other = faiss_ext::reverse_index_factory(&from);
    FAISS_THROW_IF_NOT_FMT(
            typeid(from) == typeid(to) && from.code_size == to.code_size,
            "other: \"%s\", expected \"%s\" as this index",
            other.c_str(),
            name.c_str());
    FAISS_THROW_IF_NOT_FMT(
            to.ntotal == 0 || from.ntotal == 0 ||
                    !(has_fixed_blocks(to) || has_fixed_blocks(from)),
            "merge_from: FAISS %s appends nothing to the lists of a fast scan "
            "index (PQ4x4fs) that holds vectors (ntotal = %zd), expected an "
            "empty one",
            FAISS_VERSION,
            ssize_t(to.ntotal));
    auto dedup = dynamic_cast<const faiss::IndexIVFFlatDedup*>(&from);
    FAISS_THROW_IF_NOT_MSG(
            !dedup || dedup->instances.empty(),
            "other: it has equal vectors, whose ids FAISS loses when FlatDedup "
            "is merged, expected none");
}

void merge_from(PyIndex& self, PyIndex& other, int64_t add_id) {
    FAISS_THROW_IF_NOT_MSG(
            &self != &other, "other: expected an index other than this one");
    for (const PyIndex* one : {&self, &other}) {
        const faiss::IndexIVF* ivf = extract_ivf(*one->index);
        FAISS_THROW_IF_NOT_FMT(
                !ivf || ivf->direct_map.no(),
                "%s: it has a direct map, expected none; "
                "set_direct_map(\"none\") drops it",
                one == &self ? "merge_from, this index" : "other");
    }
    check_same("d", self.index->d, other.index->d);
    // Older FAISS has none for wrappers, newer none for all.
    std::vector<faiss::Index*> wrappers;
    faiss::Index *to = self.index.get(), *from = other.index.get();
    while (auto pre = dynamic_cast<faiss::IndexPreTransform*>(to)) {
        auto other_pre = dynamic_cast<faiss::IndexPreTransform*>(from);
        FAISS_THROW_IF_NOT_MSG(
                other_pre && same_chain(*pre, *other_pre),
                "other: expected an index behind the same transformations");
        wrappers.insert(wrappers.end(), {to, from});
        to = pre->index;
        from = other_pre->index;
    }
    auto ivf = dynamic_cast<faiss::IndexIVF*>(to);
    auto other_ivf = dynamic_cast<faiss::IndexIVF*>(from);
    FAISS_THROW_IF_NOT_MSG(
            ivf,
            "merge_from: expected an IVF index, alone or behind "
            "transformations");
    FAISS_THROW_IF_NOT_MSG(
            other_ivf,
            "other: expected an IVF index, alone or behind transformations");
    check_merges(*ivf, *other_ivf);
    {
        const LongCall long_call;
        ivf->merge_from(*other_ivf, add_id);
    }
    for (size_t i = 0; i < wrappers.size(); i += 2) {
        wrappers[i]->ntotal = ivf->ntotal;
        wrappers[i + 1]->ntotal = other_ivf->ntotal;
    }
    raise_interrupt();
}

/// With what FAISS leaves there: ids of before would be found again.
void reset(PyIndex& self) {
    faiss::Index* index = self.index.get();
    index->reset();
    auto inner = const_cast<faiss::Index*>(behind_transforms(index));
    if (auto map = dynamic_cast<faiss::IndexIDMap2*>(inner)) {
        map->rev_map.clear();
    }
    inner = *faiss_ext::unwrap(&index);
    if (auto dedup = dynamic_cast<faiss::IndexIVFFlatDedup*>(inner)) {
        dedup->instances.clear();
    }
}

void set_direct_map(PyIndex& self, const std::string& type) {
    faiss::IndexIVF& ivf = self.ivf("set_direct_map");
    faiss::DirectMap::Type wanted = faiss::DirectMap::NoMap;
    if (type == "array") {
        wanted = faiss::DirectMap::Array;
    } else if (type == "hashtable") {
        wanted = faiss::DirectMap::Hashtable;
    } else if (type != "none") {
        FAISS_THROW_FMT(
                "type = \"%s\", expected \"none\", \"array\" or "
                "\"hashtable\"",
                type.c_str());
    }
    if (ivf.direct_map.type == wanted) {
        return;
    }
    const LongCall long_call;
    // FAISS has set the type before it finds ids that do not fit.
    faiss::DirectMap before;
    std::swap(before, ivf.direct_map);
    try {
        ivf.set_direct_map_type(wanted);
    } catch (const faiss::FaissException&) {
        std::swap(before, ivf.direct_map);
        FAISS_THROW_IF_NOT_FMT(
                wanted != faiss::DirectMap::Array,
                "type = \"array\", expected the ids 0 to ntotal - 1 = %zd in "
                "the index, each once; \"hashtable\" takes any",
                ssize_t(ivf.ntotal) - 1);
        throw;
    } catch (...) {
        std::swap(before, ivf.direct_map);
        throw;
    }
}

} // namespace

void bind_index_changes(nb::class_<PyIndex>& index) {
    index.def("train", &train, nb::arg("x").noconvert());
    index.def("add", &add, nb::arg("x").noconvert());
    index.def(
            "add_with_ids",
            &add_with_ids,
            nb::arg("x").noconvert(),
            nb::arg("ids").noconvert());
    index.def(
            "update_vectors",
            &update_vectors,
            nb::arg("ids").noconvert(),
            nb::arg("x").noconvert());
    index.def("remove_ids", &remove_ids, nb::arg("sel"));
    index.def(
            "merge_from", &merge_from, nb::arg("other"), nb::arg("add_id") = 0);
    index.def("reset", &reset);
    index.def("set_direct_map", &set_direct_map, nb::arg("type"));
}

} // namespace faiss_ext_python
