#pragma once

#include <memory>
#include <string>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <faiss/Index.h>
#include <faiss/impl/IDSelector.h>

#include "EMTrainer.h"
#include "faiss_ext/IndexIVFGMM.h"

namespace faiss_ext_python {

namespace nb = nanobind;
using faiss_ext::idx_t;

/// C-contiguous, on the CPU, and not converted: faiss_ext/_arrays.py did it.
template <class T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Vector = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

/// A numpy array that owns the values.
template <class T>
nb::object to_numpy(std::vector<T>&& values, std::vector<size_t> shape) {
    auto owned = std::make_unique<std::vector<T>>(std::move(values));
    T* data = owned->data();
    nb::capsule owner(owned.release(), [](void* p) noexcept {
        delete static_cast<std::vector<T>*>(p);
    });
    return nb::cast(
            nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), owner));
}

/// The names of scikit-learn: "spherical", "diag", "full", "tied", and
/// "tied_spherical".
gmm::Covariance covariance_from_string(const std::string& name);
const char* covariance_name(gmm::Covariance covariance);
/// As covariance_from_string, for an index: without "full" and "tied".
gmm::Covariance list_covariance(const std::string& name);

/// The IVF index inside whatever is around it, or nullptr.
faiss::IndexIVF* extract_ivf(faiss::Index& index);
/// What is behind IndexPreTransforms.
const faiss::Index* behind_transforms(const faiss::Index* index);

/// A FAISS index and what Python may say to it.
struct PyIndex {
    std::unique_ptr<faiss::Index> index;

    explicit PyIndex(std::unique_ptr<faiss::Index> index)
            : index(std::move(index)) {}

    /// Throws FaissException if there is none inside; `what` is the method or
    /// field that needs it.
    faiss::IndexIVF& ivf(const char* what) const;
    faiss_ext::IVFGMM& gmm(const char* what) const;
};

/// Throws FaissException for vectors of another dimension than the index's.
void check_rows(
        const faiss::Index& index, const char* name, Matrix<const float> x);
/// Throws FaissException unless there is an id for each of n vectors.
void check_ids(size_t n, Vector<const int64_t> ids);

/// An IDSelector with the memory that it points to.
struct Selector {
    std::unique_ptr<faiss::IDSelector> selector;
    std::vector<uint8_t> bits;
    std::shared_ptr<Selector> of;
    std::string repr; ///< as Python shows it
};

void bind_search(nb::module_& m, nb::class_<PyIndex>& index);
void bind_calibration(nb::module_& m);
void bind_index(nb::module_& m, nb::class_<PyIndex>& index);
void bind_index_changes(nb::class_<PyIndex>& index);
void bind_index_fields(nb::class_<PyIndex>& index);
void bind_index_io(nb::module_& m);
void bind_sources(nb::class_<PyIndex>& index);
void bind_mixture(nb::module_& m);
void bind_sufficient_stats(nb::module_& m);
void bind_shards(nb::module_& m);

} // namespace faiss_ext_python
