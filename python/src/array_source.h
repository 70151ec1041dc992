#pragma once

#include <memory>
#include <variant>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/variant.h>

#include "VectorSource.h"

namespace faiss_ext_python {

/// Any matrix of numbers in memory or in a mapped file: of numpy, and of what
/// speaks DLPack.
using AnyMatrix = nanobind::
        ndarray<nanobind::ro, nanobind::ndim<2>, nanobind::device::cpu>;

/** Its rows, converted as they are read.
 *
 * C-contiguous float32, float16 and uint8 are pointed at in place.
 *
 * @param center  size d: subtracted in double before values are rounded to
 *                float; empty: nothing is
 *
 * Throws TypeError naming the dtype for what is not a number. The matrix must
 * outlive the source. Reading throws PythonErrorIsSet after Ctrl-C.
 */
std::unique_ptr<gmm::VectorSource> array_source(
        const AnyMatrix& x, std::vector<double> center = {});

/// In a CUDA device's memory, of what speaks DLPack (torch, cupy).
using DeviceMatrix = nanobind::ndarray<
        nanobind::ro,
        nanobind::ndim<2>,
        nanobind::c_contig,
        nanobind::device::cuda>;
using Vectors = std::variant<AnyMatrix, DeviceMatrix>;

/** Of a device's float32, float16 and uint8: gmm::device_source, which the
 * CUDA backend reads in place.
 *
 * Throws TypeError for another dtype on a device, and ValueError for a center
 * there. */
std::unique_ptr<gmm::VectorSource> array_source(
        const Vectors& x, std::vector<double> center = {});

} // namespace faiss_ext_python
