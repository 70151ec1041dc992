#include <cmath>
#include <string>
#include <type_traits>
#include <utility>

#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <faiss/IndexIDMap.h>
#include <faiss/IndexPreTransform.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/FaissAssert.h>

#include "FullCovariance.h"
#include "bindings.h"
#include "faiss_ext/GMMParameterSpace.h"
#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/index_factory.h"
#include "faiss_ext/ivflib.h"
#include "interrupt.h"

namespace faiss_ext_python {

gmm::Covariance covariance_from_string(const std::string& name) {
    for (gmm::Covariance covariance :
         {gmm::Covariance::isotropic,
          gmm::Covariance::diagonal,
          gmm::Covariance::tied_spherical,
          gmm::Covariance::full,
          gmm::Covariance::tied}) {
        if (name == covariance_name(covariance)) {
            return covariance;
        }
    }
    FAISS_THROW_FMT(
            "covariance_type = \"%s\", expected \"spherical\", \"diag\", "
            "\"tied_spherical\", \"full\" or \"tied\"",
            name.c_str());
}

const char* covariance_name(gmm::Covariance covariance) {
    switch (covariance) {
        case gmm::Covariance::isotropic:
            return "spherical";
        case gmm::Covariance::diagonal:
            return "diag";
        case gmm::Covariance::tied_spherical:
            return "tied_spherical";
        case gmm::Covariance::full:
            return "full";
        case gmm::Covariance::tied:
            return "tied";
    }
    FAISS_THROW_MSG("a covariance kind that Python has no name for");
}

gmm::Covariance list_covariance(const std::string& name) {
    const gmm::Covariance covariance = covariance_from_string(name);
    FAISS_THROW_IF_NOT_FMT(
            !gmm::has_matrices(covariance),
            "covariance_type = \"%s\", expected \"spherical\", \"diag\" or "
            "\"tied_spherical\": lists have no covariance matrices",
            name.c_str());
    return covariance;
}

const faiss::Index* behind_transforms(const faiss::Index* index) {
    while (auto pre = dynamic_cast<const faiss::IndexPreTransform*>(index)) {
        index = pre->index;
    }
    return index;
}

faiss::IndexIVF* extract_ivf(faiss::Index& index) {
    faiss::Index* root = &index;
    return dynamic_cast<faiss::IndexIVF*>(*faiss_ext::unwrap(&root));
}

faiss::IndexIVF& PyIndex::ivf(const char* what) const {
    faiss::IndexIVF* out = extract_ivf(*index);
    FAISS_THROW_IF_NOT_FMT(out, "%s: the index has no inverted lists", what);
    return *out;
}

faiss_ext::IVFGMM& PyIndex::gmm(const char* what) const {
    faiss::Index* root = index.get();
    return faiss_ext::gmm_of(what, *faiss_ext::unwrap(&root));
}

void check_rows(
        const faiss::Index& index, const char* name, Matrix<const float> x) {
    FAISS_THROW_IF_NOT_FMT(
            x.shape(1) == size_t(index.d),
            "%s: %zu columns, expected the index's d = %d",
            name,
            x.shape(1),
            index.d);
}

void check_ids(size_t n, Vector<const int64_t> ids) {
    FAISS_THROW_IF_NOT_FMT(
            ids.shape(0) == n,
            "ids: %zu of them, expected one for each of %zu vectors",
            ids.shape(0),
            n);
}

namespace {

/// Whether a vector's id is its place, which FAISS does not check: neither
/// lists nor a map of ids say what is there.
bool ids_are_places(const faiss::Index* index) {
    while (true) {
        if (auto pre = dynamic_cast<const faiss::IndexPreTransform*>(index)) {
            index = pre->index;
        } else if (
                auto refine = dynamic_cast<const faiss::IndexRefine*>(index)) {
            index = refine->refine_index;
        } else {
            return !dynamic_cast<const faiss::IndexIVF*>(index) &&
                    !dynamic_cast<const faiss::IndexIDMap*>(index);
        }
    }
}

/// Rows of vectors with the ids first, first + 1, ...; throws for one that is
/// not there, whose row FAISS leaves as it was.
void reconstruct_rows(
        const faiss::Index& index, int64_t first, int64_t n, float* out) {
    if (auto pre = dynamic_cast<const faiss::IndexPreTransform*>(&index)) {
        if (pre->chain.empty()) { // of which FAISS writes nothing
            return reconstruct_rows(*pre->index, first, n, out);
        }
        std::vector<float> inner(n * pre->index->d);
        reconstruct_rows(*pre->index, first, n, inner.data());
        return pre->reverse_chain(n, inner.data(), out);
    }
    const size_t d = index.d;
    for (int64_t i = 0; i < n; i++) {
        out[i * d] = NAN;
    }
    if (dynamic_cast<const faiss::IndexIDMap*>(&index)) {
        // FAISS's own asks in a parallel region, which no exception may leave.
        for (int64_t i = 0; i < n; i++) {
            index.reconstruct(first + i, out + i * d);
        }
    } else {
        index.reconstruct_n(first, n, out);
    }
    for (int64_t i = 0; i < n; i++) {
        FAISS_THROW_IF_NOT_FMT(
                !std::isnan(out[i * d]),
                "n0 = %zd and ni = %zd: the index has no vector with the id "
                "%zd",
                ssize_t(first),
                ssize_t(n),
                ssize_t(first + i));
    }
}

void reconstruct_n(PyIndex& self, int64_t first, Matrix<float> out) {
    const int64_t n = int64_t(out.shape(0));
    FAISS_THROW_IF_NOT_FMT(
            first >= 0 && n <= self.index->ntotal &&
                    first <= self.index->ntotal - n,
            "n0 = %zd and ni = %zd, expected a range within the index's "
            "ntotal = %zd",
            ssize_t(first),
            ssize_t(n),
            ssize_t(self.index->ntotal));
    FAISS_THROW_IF_NOT_MSG(
            out.shape(1) == size_t(self.index->d), "x: expected d columns");
    const LongCall long_call;
    reconstruct_rows(*self.index, first, n, out.data());
}

void reconstruct_batch(
        PyIndex& self, Vector<const int64_t> ids, Matrix<float> out) {
    check_ids(out.shape(0), ids);
    FAISS_THROW_IF_NOT_MSG(
            out.shape(1) == size_t(self.index->d), "x: expected d columns");
    auto ivf = dynamic_cast<const faiss::IndexIVF*>(
            behind_transforms(self.index.get()));
    FAISS_THROW_IF_NOT_MSG(
            !ivf || !ivf->direct_map.no(),
            "reconstruct: the index has no direct map; "
            "set_direct_map(\"hashtable\") makes one");
    if (ids_are_places(self.index.get())) {
        for (size_t i = 0; i < ids.shape(0); i++) {
            const int64_t id = ids.data()[i];
            FAISS_THROW_IF_NOT_FMT(
                    id >= 0 && id < self.index->ntotal,
                    "key = %zd, expected an id of at least 0 and below the "
                    "index's ntotal = %zd",
                    ssize_t(id),
                    ssize_t(self.index->ntotal));
        }
    }
    const LongCall long_call;
    for (size_t i = 0; i < ids.shape(0); i++) {
        self.index->reconstruct(ids.data()[i], &out(i, 0));
    }
}

/// means, variances, weights, covariance_type
nb::tuple mixture(const PyIndex& self) {
    gmm::GaussianMixture m;
    faiss::IndexIVF* ivf = extract_ivf(*self.index);
    if (auto quantizer = dynamic_cast<const faiss_ext::IndexGMM*>(
                ivf ? ivf->quantizer : self.index.get())) {
        m = quantizer->mixture(); // of a stock index
    } else {
        m = self.gmm("mixture").mixture();
    }
    std::vector<size_t> shape = {m.variances.size()};
    if (m.covariance == gmm::Covariance::diagonal) {
        shape = {m.k, m.d};
    } else if (m.covariance == gmm::Covariance::tied_spherical) {
        shape = {};
    } else if (gmm::has_matrices(m.covariance)) {
        const bool one = m.covariance == gmm::Covariance::tied;
        for (size_t c = 0; c < (one ? 1 : m.k); c++) {
            const std::vector<double> matrix = gmm::covariance_matrix(m, c);
            m.variances.insert(m.variances.end(), matrix.begin(), matrix.end());
        }
        shape = {m.k, m.d, m.d};
        if (one) {
            shape.erase(shape.begin());
        }
    }
    std::vector<float> weights;
    for (float w : m.log_weights) {
        weights.push_back(std::exp(w));
    }
    return nb::make_tuple(
            to_numpy(std::move(m.means), {m.k, m.d}),
            to_numpy(std::move(m.variances), shape),
            to_numpy(std::move(weights), {m.k}),
            covariance_name(m.covariance));
}

/// A field that says its name where it is set to what it cannot be.
template <auto Field>
void bind_cp_field(
        nb::class_<faiss::ClusteringParameters>& cp,
        const char* name,
        const char* doc) {
    using Cp = faiss::ClusteringParameters;
    using Value = std::remove_cvref_t<decltype(std::declval<Cp>().*Field)>;
    cp.def_prop_rw(
            name,
            [](const Cp& self) { return self.*Field; },
            [name](Cp& self, nb::handle given) {
                Value value;
                if (!nb::try_cast(given, value)) {
                    const std::string message = std::string(name) + " = " +
                            nb::repr(given).c_str() + ", expected " +
                            (std::is_same_v<Value, bool>
                                     ? "True or False"
                                     : "an integer of 32 bits");
                    throw nb::type_error(message.c_str());
                }
                self.*Field = value;
            },
            nb::arg("value").none(),
            doc);
}

void bind_clustering(nb::module_& m) {
    using Cp = faiss::ClusteringParameters;
    nb::class_<Cp> cp(m, "ClusteringParameters", "How the mixture is trained.");
    bind_cp_field<&Cp::niter>(cp, "niter", "EM iterations at most.");
    bind_cp_field<&Cp::nredo>(cp, "nredo", "Runs, of which the best is kept.");
    bind_cp_field<&Cp::verbose>(cp, "verbose", "Prints what it does.");
    bind_cp_field<&Cp::seed>(cp, "seed", "Of what is drawn.");
    bind_cp_field<&Cp::min_points_per_centroid>(
            cp,
            "min_points_per_centroid",
            "Training warns of fewer vectors a list.");
    bind_cp_field<&Cp::max_points_per_centroid>(
            cp,
            "max_points_per_centroid",
            "Training uses this many vectors a list at most.");
}

void bind_methods(nb::class_<PyIndex>& index) {
    index.def(
            "reconstruct_n",
            &reconstruct_n,
            nb::arg("first"),
            nb::arg("out").noconvert());
    index.def(
            "reconstruct_batch",
            &reconstruct_batch,
            nb::arg("ids").noconvert(),
            nb::arg("out").noconvert());
    index.def(
            "calibrate",
            [](PyIndex& self, Matrix<const float> x, size_t k) {
                check_rows(*self.index, "queries", x);
                const LongCall long_call;
                faiss_ext::calibrate(self.index.get(), x.shape(0), x.data(), k);
            },
            nb::arg("queries").noconvert(),
            nb::arg("k"));
    index.def(
            "calibrate_on_own",
            [](PyIndex& self, size_t nq, size_t k) {
                auto& gmm = self.gmm("calibrate");
                const LongCall long_call;
                gmm.calibrate(nq, nullptr, k);
            },
            nb::arg("nq"),
            nb::arg("k"));
    index.def("optimize", [](PyIndex& self) {
        auto& gmm = self.gmm("optimize");
        const LongCall long_call;
        gmm.optimize();
    });
    index.def("maintenance_due", [](const PyIndex& self) {
        return self.gmm("maintenance_due").maintenance_due();
    });
    index.def("maintain", [](PyIndex& self) {
        auto& gmm = self.gmm("maintain");
        const LongCall long_call;
        gmm.maintain();
    });
    index.def("mixture", &mixture);
    index.def(
            "set_parameters",
            [](PyIndex& self, const std::string& description) {
                faiss_ext::GMMParameterSpace().set_index_parameters(
                        self.index.get(), description.c_str());
            },
            nb::arg("description"));
    index.def("factory", [](const PyIndex& self) {
        return faiss_ext::reverse_index_factory(self.index.get());
    });
    index.def("has_mixture", [](const PyIndex& self) {
        return faiss_ext::extract_gmm(self.index.get()) != nullptr;
    });
    index.def("has_lists", [](const PyIndex& self) {
        return extract_ivf(*self.index) != nullptr;
    });
    index.def("list_sizes", [](const PyIndex& self) {
        const faiss::IndexIVF& ivf = self.ivf("list_sizes");
        std::vector<int64_t> sizes;
        for (size_t i = 0; i < ivf.nlist; i++) {
            sizes.push_back(int64_t(ivf.invlists->list_size(i)));
        }
        const size_t n = sizes.size();
        return to_numpy(std::move(sizes), {n});
    });
    index.def("clone", [](const PyIndex& self) {
        const LongCall long_call;
        return PyIndex(faiss_ext::clone_index(self.index.get()));
    });
}

} // namespace

void bind_index(nb::module_& m, nb::class_<PyIndex>& index) {
    bind_calibration(m);
    bind_clustering(m);
    bind_methods(index);
    bind_index_changes(index);
    bind_index_fields(index);
    m.def(
            "index_factory",
            [](int d, const std::string& description, int metric) {
                return PyIndex(
                        std::unique_ptr<faiss::Index>(faiss_ext::index_factory(
                                d,
                                description.c_str(),
                                faiss::MetricType(metric))));
            },
            nb::arg("d"),
            nb::arg("description"),
            nb::arg("metric"));
}

} // namespace faiss_ext_python
