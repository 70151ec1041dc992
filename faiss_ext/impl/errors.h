#pragma once

#include <cstdint>
#include <string>
#include <typeinfo>
#include <utility>

#include <faiss/IndexIVF.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/FaissException.h>

#include "Error.h"
#include "VectorSource.h"

namespace faiss_ext {

/// Runs f; what src/ throws becomes a FaissException with the same message.
template <class F>
decltype(auto) as_faiss_exception(F&& f) {
    try {
        return std::forward<F>(f)();
    } catch (const gmm::InvalidArgument& e) {
        FAISS_THROW_MSG(e.what());
    } catch (const gmm::DeviceError& e) {
        FAISS_THROW_MSG(e.what());
    }
}

/// The class of an object as people write it, for messages.
template <class T>
std::string type_name(const T& object) {
    return faiss::demangle_cpp_symbol(typeid(object).name());
}

/// What a person needs of FAISS's "Error in f at file:line: Error: 'condition'
/// failed: message".
std::string without_place(const std::string& message);

/// Throws a FaissException naming the argument if there are fewer than 0.
void check_count(const char* argument, int64_t n);

/// The same, and throws where no memory holds n * d values of four bytes, and
/// for rows = nullptr if there are to be any.
void check_rows(const char* argument, int64_t n, size_t d, const void* rows);

/// As check_rows, and throws a FaissException naming the argument, its row and
/// the value if any of the n * d values is NaN or infinite.
void check_finite(const char* argument, size_t n, size_t d, const float* x);

/// The same, and throws if a row's squared norm is above 1e37: distances would
/// overflow, and FAISS loses such vectors.
void check_storable(const char* argument, size_t n, size_t d, const float* x);

/// The same of n rows of a source, as floats, from row begin.
void check_storable(
        const gmm::VectorSource& source,
        size_t begin,
        size_t n,
        const float* x);

/// Throws for a number of neighbours below 1, or more than memory can hold.
void check_neighbours(int64_t k);

/// Throws unless probe_mass is in (0, 1] and target_recall in [0, 1).
void check_shares(float probe_mass, float target_recall);

/// Throws a FaissException if faiss::InterruptCallback wants that. From any
/// thread.
void check_interrupt();

/// Throws for metrics other than the two that mixtures are for.
void check_metric(faiss::MetricType metric);

/// Whether entries can be added and moved: not where lists are mapped
/// read-only.
bool is_writable(const faiss::IndexIVF& index);

/// Throws where the index is not trained, where its quantizer has means for
/// more or fewer than its lists, and where there are no such lists.
void check_trained(const faiss::IndexIVF& index);

/// Throws where there are no lists, or they are mapped read-only or of FAISS's
/// read-only kinds: FAISS would, from threads of
/// its own, where nobody can catch it.
void check_writable(const faiss::IndexIVF& index);

/// The same of one list that FAISS may have mapped.
void check_writable(const faiss::IndexIVF& index, size_t list);

} // namespace faiss_ext
