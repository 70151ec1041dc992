#pragma once

#include "faiss_ext/IndexIVFGMM.h"

/// Arguments of calls, before anything is done: each throws a FaissException
/// that names the argument, its value and what was expected.
namespace faiss_ext {

/// n rows of k ids or lists.
void check_ids(const char* argument, idx_t n, size_t k, const idx_t* ids);

/// n * k labels.
void check_labels(idx_t n, idx_t k, const idx_t* labels);

/// The same, and as many distances.
void check_answers(
        idx_t n, idx_t k, const float* distances, const idx_t* labels);

/// n codes of so many bytes.
void check_bytes(
        const char* argument, idx_t n, size_t size, const uint8_t* bytes);

/// The lists that n codes of sa_encode() begin with.
void check_lists_of_codes(
        const faiss::IndexIVF& index, idx_t n, const uint8_t* bytes);

/// The result of a range search of n queries.
void check_result(idx_t n, const faiss::RangeSearchResult* result);

void check_search(
        const faiss::IndexIVF& index,
        idx_t n,
        const float* x,
        idx_t k,
        const float* distances,
        const idx_t* labels);

/// Of search_preassigned and range_search_preassigned.
void check_preassigned(
        const faiss::IndexIVF& ivf,
        const IVFGMM& gmm,
        const char* call,
        idx_t n,
        const float* x,
        const idx_t* assign,
        const float* centroid_dis,
        const faiss::IVFSearchParameters* params);

} // namespace faiss_ext
