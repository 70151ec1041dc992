#include <cmath>
#include <type_traits>
#include <utility>

#include <nanobind/stl/string.h>

#include <faiss/IndexIDMap.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/FaissAssert.h>

#include "bindings.h"
#include "faiss_ext/GMMParameterSpace.h"
#include "faiss_ext/ivflib.h"

namespace faiss_ext_python {

namespace {

const char* get_direct_map(const PyIndex& self) {
    switch (self.ivf("direct_map").direct_map.type) {
        case faiss::DirectMap::Array:
            return "array";
        case faiss::DirectMap::Hashtable:
            return "hashtable";
        default:
            return "none";
    }
}

/// What compares again what the index found (RFlat), inside whatever is around
/// it.
faiss::IndexRefine& refine(const PyIndex& self) {
    faiss::Index* index = self.index.get();
    while (index) {
        if (auto found = dynamic_cast<faiss::IndexRefine*>(index)) {
            return *found;
        }
        if (auto pre = dynamic_cast<faiss::IndexPreTransform*>(index)) {
            index = pre->index;
        } else if (auto map = dynamic_cast<faiss::IndexIDMap*>(index)) {
            index = map->index;
        } else {
            index = nullptr;
        }
    }
    FAISS_THROW_MSG("k_factor: the index has no RFlat or Refine");
}

/// Sets a number through GMMParameterSpace, which knows the ranges.
void set_number(PyIndex& self, const char* name, double value) {
    faiss_ext::GMMParameterSpace().set_index_parameter(
            self.index.get(), name, value);
}

template <auto Field>
using ValueOf =
        std::remove_cvref_t<decltype(std::declval<faiss_ext::IVFGMM>().*Field)>;

/// A field of the mixture's part that may be set at any time, to values that
/// are allowed(self, value).
template <auto Field, class Allowed>
void bind_gmm_field(
        nb::class_<PyIndex>& index,
        const char* name,
        const char* expected,
        Allowed allowed) {
    index.def_prop_rw(
            name,
            [name](const PyIndex& self) { return self.gmm(name).*Field; },
            [name, expected, allowed](PyIndex& self, ValueOf<Field> value) {
                auto& gmm = self.gmm(name);
                FAISS_THROW_IF_NOT_FMT(
                        allowed(self, value),
                        "%s = %g, expected %s",
                        name,
                        double(value),
                        expected);
                gmm.*Field = value;
            });
}

template <auto Field>
void bind_gmm_field(nb::class_<PyIndex>& index, const char* name) {
    bind_gmm_field<Field>(
            index, name, "", [](const PyIndex&, auto) { return true; });
}

} // namespace

void bind_index_fields(nb::class_<PyIndex>& index) {
    using faiss_ext::IVFGMM;
    index.def_prop_ro("d", [](const PyIndex& self) { return self.index->d; });
    index.def_prop_ro(
            "ntotal", [](const PyIndex& self) { return self.index->ntotal; });
    index.def_prop_ro("is_trained", [](const PyIndex& self) {
        return self.index->is_trained;
    });
    index.def_prop_ro("metric_type", [](const PyIndex& self) {
        return int(self.index->metric_type);
    });
    index.def_prop_rw(
            "verbose",
            [](const PyIndex& self) { return self.index->verbose; },
            [](PyIndex& self, bool verbose) {
                self.index->verbose = verbose;
                if (faiss::IndexIVF* ivf = extract_ivf(*self.index)) {
                    ivf->verbose = verbose;
                }
            });
    index.def_prop_ro("nlist", [](const PyIndex& self) {
        return self.ivf("nlist").nlist;
    });
    index.def_prop_ro("code_size", [](const PyIndex& self) {
        return self.ivf("code_size").code_size;
    });
    index.def_prop_ro(
            "cp",
            [](PyIndex& self) -> faiss::ClusteringParameters& {
                return self.ivf("cp").cp;
            },
            nb::rv_policy::reference_internal);
    index.def_prop_rw(
            "nprobe",
            [](const PyIndex& self) { return self.ivf("nprobe").nprobe; },
            [](PyIndex& self, double v) { set_number(self, "nprobe", v); });
    index.def_prop_rw(
            "k_factor",
            [](const PyIndex& self) { return refine(self).k_factor; },
            [](PyIndex& self, double v) {
                FAISS_THROW_IF_NOT_FMT(
                        v >= 1 && std::isfinite(v),
                        "k_factor = %g, expected at least 1",
                        v);
                refine(self).k_factor = float(v);
            });
    index.def_prop_rw(
            "max_codes",
            [](const PyIndex& self) { return self.ivf("max_codes").max_codes; },
            [](PyIndex& self, double v) { set_number(self, "max_codes", v); });
    index.def_prop_rw(
            "probe_mass",
            [](const PyIndex& self) {
                return self.gmm("probe_mass").probe_mass;
            },
            [](PyIndex& self, double v) { set_number(self, "probe_mass", v); });
    index.def_prop_rw(
            "target_recall",
            [](const PyIndex& self) {
                return self.gmm("target_recall").target_recall;
            },
            [](PyIndex& self, double v) {
                set_number(self, "target_recall", v);
            });
    index.def_prop_rw(
            "probe_order",
            [](const PyIndex& self) {
                return faiss_ext::to_string(
                        self.gmm("probe_order").probe_order);
            },
            [](PyIndex& self, const std::string& name) {
                self.gmm("probe_order").probe_order =
                        faiss_ext::probe_order_from_string(name);
            });
    index.def_prop_rw(
            "covariance_type",
            [](const PyIndex& self) {
                return covariance_name(self.gmm("covariance_type").covariance);
            },
            [](PyIndex& self, const std::string& name) {
                FAISS_THROW_IF_NOT_MSG(
                        !self.index->is_trained,
                        "covariance_type: the index is trained already");
                self.gmm("covariance_type").covariance = list_covariance(name);
            });
    index.def_prop_ro("calibration", [](const PyIndex& self) {
        return self.gmm("calibration").calibration;
    });
    index.def_prop_rw(
            "search_costs",
            [](const PyIndex& self) {
                return self.gmm("search_costs").calibration.costs;
            },
            [](PyIndex& self, const faiss_ext::Calibration::Costs& costs) {
                auto& gmm = self.gmm("search_costs");
                const float each[] = {
                        costs.query, costs.code, costs.distance, costs.scan};
                for (float cost : each) {
                    FAISS_THROW_IF_NOT_FMT(
                            cost >= 0 && std::isfinite(cost),
                            "search_costs: %g ns, expected at least 0",
                            double(cost));
                }
                gmm.calibration.costs = costs;
            });
    index.def_prop_ro("direct_map", &get_direct_map);
    index.def_prop_ro("backend", [](const PyIndex& self) {
        return self.gmm("backend").backend;
    });
    bind_gmm_field<&IVFGMM::cells_per_list>(index, "cells_per_list");
    bind_gmm_field<&IVFGMM::code_bits>(
            index, "code_bits", "0, 1, 2 or 4", [](const PyIndex&, int v) {
                return v == 0 || v == 1 || v == 2 || v == 4;
            });
    bind_gmm_field<&IVFGMM::max_assign>(
            index,
            "max_assign",
            "1 to the index's nlist",
            [](const PyIndex& self, size_t v) {
                return v >= 1 && v <= self.ivf("max_assign").nlist;
            });
    bind_gmm_field<&IVFGMM::assign_ratio>(
            index, "assign_ratio", "at least 0", [](const PyIndex&, float v) {
                return v >= 0;
            });
    bind_gmm_field<&IVFGMM::assign_threshold>(
            index, "assign_threshold", "a number", [](const PyIndex&, float v) {
                return !std::isnan(v);
            });
    bind_gmm_field<&IVFGMM::calibrate_on_add>(index, "calibrate_on_add");
}

} // namespace faiss_ext_python
