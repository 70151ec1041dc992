#include <algorithm>
#include <cfloat>
#include <cmath>
#include <memory>
#include <optional>

#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>

#include <faiss/IndexIVFFastScan.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissAssert.h>

#include "bindings.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/impl/faiss_compat.h"
#include "faiss_ext/ivflib.h"
#include "interrupt.h"
#include "parameters.h"

namespace faiss_ext_python {

namespace {

using Name = std::optional<std::string>;

std::optional<faiss_ext::ProbeOrder> order_of(const Name& name) {
    if (!name) {
        return {};
    }
    return faiss_ext::probe_order_from_string(*name);
}

/// Whether FAISS can look at the lists of an index.
bool has_scanner(const faiss::IndexIVF& ivf) {
    try {
        const std::unique_ptr<faiss::InvertedListScanner> scanner(
                faiss_ext::make_scanner(ivf));
        return scanner != nullptr;
    } catch (const faiss::FaissException&) {
        return false;
    }
}

/// FAISS ends the process for metrics that its lists do not have.
void check_metric(const faiss::Index& index) {
    const faiss::MetricType metric = index.metric_type;
    if (metric == faiss::METRIC_L2 || metric == faiss::METRIC_INNER_PRODUCT) {
        return;
    }
    const auto* ivf =
            dynamic_cast<const faiss::IndexIVF*>(faiss_ext::unwrap(&index));
    FAISS_THROW_IF_NOT_FMT(
            !ivf || has_scanner(*ivf),
            "metric_type = %d, expected METRIC_L2 or METRIC_INNER_PRODUCT in "
            "lists",
            int(metric));
}

/// FAISS finds nothing for a query with a NaN; Python says so. Queries that are
/// very far away end the process in some of FAISS's own types.
void check_queries(const faiss::Index& index, Matrix<const float> x) {
    FAISS_THROW_IF_NOT_MSG(
            index.is_trained, "the index is not trained; train comes first");
    check_metric(index);
    FAISS_THROW_IF_NOT_FMT(
            x.shape(1) == size_t(index.d),
            "x: %zu columns, expected the index's d = %d",
            x.shape(1),
            index.d);
    if (faiss_ext::extract_gmm(&index)) {
        faiss_ext::check_finite("x", x.shape(0), x.shape(1), x.data());
    } else {
        faiss_ext::check_storable("x", x.shape(0), x.shape(1), x.data());
    }
}

/** Calls f(begin, count) for blocks of queries, so that Ctrl-C is seen.
 *
 * A block is what takes about a second if all vectors are compared, but not so
 * few queries that searching them together does not pay. It depends on the
 * index's size and on nothing that changes from run to run: matrix products of
 * other shapes round differently.
 */
template <class F>
void in_blocks(const faiss::Index& index, size_t n, F f) {
    constexpr double kMultiplications = 4e9;
    constexpr double kLeast = 256;
    const double each = std::max(1.0, double(index.ntotal) * index.d);
    const size_t block =
            size_t(std::clamp(kMultiplications / each, kLeast, 1e6));
    for (size_t begin = 0; begin < n;) {
        // No block at the end is smaller than the others.
        const size_t left = n - begin;
        const size_t count = left < 2 * block ? left : block;
        f(begin, count);
        begin += count;
        if (begin < n) {
            check_interrupt();
        }
    }
}

/** What is found where there is nothing, true where that is so.
 *
 * The flat index of older FAISS names vector 0 then, whose id its IndexIDMap
 * looks up.
 */
bool found_nothing(
        const faiss::Index& index, size_t n, float* distances, int64_t* ids) {
    if (index.ntotal > 0) {
        return false;
    }
    const bool largest = index.metric_type == faiss::METRIC_INNER_PRODUCT;
    std::fill_n(distances, n, largest ? -FLT_MAX : FLT_MAX);
    std::fill_n(ids, n, -1);
    return true;
}

void search(
        const PyIndex& self,
        Matrix<const float> x,
        Matrix<float> distances,
        Matrix<int64_t> labels,
        const SearchParameters* params) {
    const faiss::Index& index = *self.index;
    const size_t n = x.shape(0), d = x.shape(1), k = distances.shape(1);
    check_queries(index, x);
    FAISS_THROW_IF_NOT_MSG(
            distances.shape(0) == n && labels.shape(0) == n &&
                    labels.shape(1) == k,
            "D, I: expected len(x) rows of k columns");
    const float* xq = x.data();
    float* dis = distances.data();
    int64_t* ids = labels.data();
    const LongCall long_call;
    Parameters all;
    const faiss::SearchParameters* p =
            params ? all.make(index, *params) : nullptr;
    if (found_nothing(index, n * k, dis, ids)) {
        return;
    }
    in_blocks(index, n, [&](size_t begin, size_t count) {
        index.search(
                count, xq + begin * d, k, dis + begin * k, ids + begin * k, p);
    });
}

nb::tuple range_search(
        const PyIndex& self,
        Matrix<const float> x,
        float radius,
        const SearchParameters* params) {
    const faiss::Index& index = *self.index;
    const size_t n = x.shape(0), d = x.shape(1);
    check_queries(index, x);
    FAISS_THROW_IF_NOT_MSG(
            !std::isnan(radius), "thresh = nan, expected a number");
    std::vector<int64_t> limits = {0}, labels;
    std::vector<float> distances;
    {
        const float* xq = x.data();
        const LongCall long_call;
        Parameters all;
        const faiss::SearchParameters* p =
                params ? all.make(index, *params) : nullptr;
        in_blocks(index, n, [&](size_t begin, size_t count) {
            faiss::RangeSearchResult result(count);
            index.range_search(count, xq + begin * d, radius, &result, p);
            const int64_t before = limits.back();
            for (size_t i = 0; i < count; i++) {
                limits.push_back(before + int64_t(result.lims[i + 1]));
            }
            const size_t found = result.lims[count];
            labels.insert(labels.end(), result.labels, result.labels + found);
            distances.insert(
                    distances.end(),
                    result.distances,
                    result.distances + found);
        });
    }
    const size_t found = labels.size();
    return nb::make_tuple(
            to_numpy(std::move(limits), {n + 1}),
            to_numpy(std::move(distances), {found}),
            to_numpy(std::move(labels), {found}));
}

/// FAISS's fast scan crashed here, until some version between these.
void check_reconstructs([[maybe_unused]] const faiss::Index& index) {
#if FAISS_EXT_FAISS_VERSION < 11500
    FAISS_THROW_IF_NOT_MSG(
            !dynamic_cast<const faiss::IndexIVFFastScan*>(
                    behind_transforms(&index)),
            "search_and_reconstruct: an IndexIVFPQFastScan reconstructs "
            "nothing that it finds; search, and keep the vectors");
#endif
}

void search_and_reconstruct(
        const PyIndex& self,
        Matrix<const float> x,
        Matrix<float> distances,
        Matrix<int64_t> labels,
        nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu> recons,
        const SearchParameters* params) {
    const faiss::Index& index = *self.index;
    const size_t n = x.shape(0), d = x.shape(1), k = distances.shape(1);
    check_queries(index, x);
    check_reconstructs(index);
    FAISS_THROW_IF_NOT_MSG(
            distances.shape(0) == n && labels.shape(0) == n &&
                    labels.shape(1) == k && recons.shape(0) == n &&
                    recons.shape(1) == k && recons.shape(2) == d,
            "D, I, R: expected len(x) rows of k columns");
    const float* xq = x.data();
    float* dis = distances.data();
    float* vectors = recons.data();
    int64_t* ids = labels.data();
    const LongCall long_call;
    Parameters all;
    const faiss::SearchParameters* p =
            params ? all.make(index, *params) : nullptr;
    if (found_nothing(index, n * k, dis, ids)) {
        std::fill_n(vectors, n * k * d, NAN); // as FAISS's
        return;
    }
    in_blocks(index, n, [&](size_t begin, size_t count) {
        index.search_and_reconstruct(
                count,
                xq + begin * d,
                k,
                dis + begin * k,
                ids + begin * k,
                vectors + begin * k * d,
                p);
    });
}

/// Every step-th id from first to last, which it may be.
struct IDSelectorSteps : faiss::IDSelector {
    int64_t first, last;
    uint64_t step;

    IDSelectorSteps(int64_t first, int64_t last, uint64_t step)
            : first(first), last(last), step(step) {}

    bool is_member(int64_t id) const override {
        return id >= first && id <= last &&
                (uint64_t(id) - uint64_t(first)) % step == 0;
    }
};

std::shared_ptr<Selector> selector(
        std::unique_ptr<faiss::IDSelector> made, std::string repr) {
    auto out = std::make_shared<Selector>();
    out->selector = std::move(made);
    out->repr = std::move(repr);
    return out;
}

void bind_selectors(nb::module_& m) {
    nb::class_<Selector>(
            m,
            "IDSelector",
            "Which ids a search may find or remove_ids removes. Made by "
            "IDSelectorRange, IDSelectorBatch and IDSelectorBitmap; ``~`` "
            "selects the others.")
            .def(
                    "is_member",
                    [](const Selector& s, int64_t id) {
                        return s.selector->is_member(id);
                    },
                    nb::arg("id"),
                    "Whether the id is selected.")
            .def("__repr__", [](const Selector& s) { return s.repr; })
            .def("__invert__", [](std::shared_ptr<Selector> s) {
                auto out = selector(
                        std::make_unique<faiss::IDSelectorNot>(
                                s->selector.get()),
                        "~" + s->repr);
                out->of = s;
                return out;
            });
    m.def(
            "IDSelectorRange",
            [](int64_t imin, int64_t imax) {
                return selector(
                        std::make_unique<faiss::IDSelectorRange>(imin, imax),
                        "IDSelectorRange(" + std::to_string(imin) + ", " +
                                std::to_string(imax) + ")");
            },
            nb::arg("imin"),
            nb::arg("imax"),
            "Ids from imin to below imax.");
    m.def(
            "IDSelectorSteps",
            [](int64_t first, int64_t last, uint64_t step, std::string repr) {
                FAISS_THROW_IF_NOT(step > 0);
                return selector(
                        std::make_unique<IDSelectorSteps>(first, last, step),
                        std::move(repr));
            },
            nb::arg("first"),
            nb::arg("last"),
            nb::arg("step"),
            nb::arg("repr"),
            "Every step-th id from first to last.");
    m.def(
            "IDSelectorBatch",
            [](Vector<const int64_t> ids) {
                return selector(
                        std::make_unique<faiss::IDSelectorBatch>(
                                ids.shape(0), ids.data()),
                        "IDSelectorBatch(" + std::to_string(ids.shape(0)) +
                                " ids)");
            },
            nb::arg("ids"),
            "These ids, an array of int64.");
    m.def(
            "IDSelectorBitmap",
            [](Vector<const uint8_t> bitmap) {
                auto out = std::make_shared<Selector>();
                out->bits.assign(
                        bitmap.data(), bitmap.data() + bitmap.shape(0));
                out->selector = std::make_unique<faiss::IDSelectorBitmap>(
                        out->bits.size(), out->bits.data());
                out->repr = "IDSelectorBitmap(" +
                        std::to_string(out->bits.size()) + " bytes)";
                return out;
            },
            nb::arg("bitmap"),
            "Id i where bit i % 8 of byte i // 8 is set, as numpy.packbits "
            "with "
            "bitorder=\"little\" packs a mask.");
}

void bind_stats(nb::module_& m) {
    m.def(
            "reset_stats",
            [] {
                faiss::indexIVF_stats.reset();
                faiss_ext::ivf_gmm_stats.reset();
            },
            "Sets what stats counts to 0.");
    m.def(
            "stats",
            [] {
                const faiss::IndexIVFStats& ivf = faiss::indexIVF_stats;
                const faiss_ext::IVFGMMStats& gmm = faiss_ext::ivf_gmm_stats;
                nb::dict out;
                out["nq"] = ivf.nq;
                out["nlist"] = ivf.nlist;
                out["ndis"] = ivf.ndis;
                out["n_cell_scores"] = gmm.n_cell_scores;
                out["n_codes"] = gmm.n_codes;
                return out;
            },
            "What searches of all indexes with lists did since reset_stats; "
            "counts may be missed while several threads search.");
}

} // namespace

void bind_search(nb::module_& m, nb::class_<PyIndex>& index) {
    bind_selectors(m);
    bind_stats(m);
    nb::class_<SearchParameters>(m, "SearchParameters")
            .def(
                    "__init__",
                    [](SearchParameters* self,
                       std::optional<size_t> nprobe,
                       std::optional<size_t> max_codes,
                       const Name& probe_order,
                       std::optional<float> probe_mass,
                       std::optional<float> target_recall,
                       std::shared_ptr<Selector> sel) {
                        new (self) SearchParameters{
                                nprobe,
                                max_codes,
                                order_of(probe_order),
                                probe_mass,
                                target_recall,
                                std::move(sel)};
                    },
                    nb::kw_only(),
                    nb::arg("nprobe") = nb::none(),
                    nb::arg("max_codes") = nb::none(),
                    nb::arg("probe_order") = nb::none(),
                    nb::arg("probe_mass") = nb::none(),
                    nb::arg("target_recall") = nb::none(),
                    nb::arg("sel").none() = nb::none())
            .def_rw("nprobe", &SearchParameters::nprobe)
            .def_rw("max_codes", &SearchParameters::max_codes)
            .def_prop_rw(
                    "probe_order",
                    [](const SearchParameters& p) -> Name {
                        if (!p.probe_order) {
                            return {};
                        }
                        return faiss_ext::to_string(*p.probe_order);
                    },
                    [](SearchParameters& p, const Name& name) {
                        p.probe_order = order_of(name);
                    },
                    nb::arg("name").none())
            .def_rw("probe_mass", &SearchParameters::probe_mass)
            .def_rw("target_recall", &SearchParameters::target_recall)
            .def_rw("sel", &SearchParameters::sel, nb::arg("sel").none());
    m.def(
            "check_finite",
            [](const std::string& name, Matrix<const float> x) {
                faiss_ext::check_finite(
                        name.c_str(), x.shape(0), x.shape(1), x.data());
            },
            nb::arg("name"),
            nb::arg("x").noconvert(),
            "Throws FaissError naming the first value that is not finite.");
    index.def(
            "search",
            &search,
            nb::arg("x").noconvert(),
            nb::arg("D").noconvert(),
            nb::arg("I").noconvert(),
            nb::arg("params").none() = nb::none());
    index.def(
            "range_search",
            &range_search,
            nb::arg("x").noconvert(),
            nb::arg("radius"),
            nb::arg("params").none() = nb::none());
    index.def(
            "search_and_reconstruct",
            &search_and_reconstruct,
            nb::arg("x").noconvert(),
            nb::arg("D").noconvert(),
            nb::arg("I").noconvert(),
            nb::arg("R").noconvert(),
            nb::arg("params").none() = nb::none());
}

} // namespace faiss_ext_python
