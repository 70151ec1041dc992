#include <cstring>
#include <filesystem>

#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <faiss/IndexIVF.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/io.h>
#include <faiss/index_io.h>

#include "bindings.h"
#include "faiss_ext/IndexIVFRaBitQGMM.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/io/before_writing.h"
#include "faiss_ext/ivflib.h"
#include "interrupt.h"

namespace faiss_ext_python {

namespace {

/// Bytes that somebody else owns, read without a copy.
struct BytesReader : faiss::IOReader {
    const uint8_t* data;
    size_t left;

    BytesReader(const uint8_t* data, size_t size) : data(data), left(size) {
        name = "bytes";
    }

    size_t operator()(void* ptr, size_t size, size_t nitems) override {
        if (size == 0 || nitems == 0) {
            return nitems;
        }
        const size_t items = std::min(nitems, left / size);
        memcpy(ptr, data, items * size);
        data += items * size;
        left -= items * size;
        return items;
    }
};

using Bytes = Vector<const uint8_t>;

PyIndex own(faiss::Index* index) {
    return PyIndex(std::unique_ptr<faiss::Index>(index));
}

PyIndex deserialize(Bytes bytes) {
    const LongCall long_call;
    BytesReader reader(bytes.data(), bytes.shape(0));
    return own(faiss_ext::read_index(&reader));
}

nb::object serialize(const PyIndex& self) {
    faiss::VectorIOWriter writer;
    {
        const LongCall long_call;
        faiss_ext::write_index(self.index.get(), &writer);
    }
    const size_t size = writer.data.size();
    return to_numpy(std::move(writer.data), {size});
}

/// What FAISS's own readers open, without the mixture behind it.
nb::object serialize_stock(const PyIndex& self) {
    const auto* on_disk = faiss_ext::lists_on_disk(self.index.get());
    FAISS_THROW_IF_NOT_MSG(
            !on_disk || !on_disk->filename.empty(),
            "to_faiss: the inverted lists are mapped from the file that the "
            "index was read from; read it without IO_FLAG_MMAP, or by faiss");
    if (auto gmm = faiss_ext::extract_gmm(self.index.get())) {
        const size_t assign = gmm->earlier_lists.empty()
                ? gmm->max_assign
                : std::max(gmm->max_assign, gmm->filled_assign);
        FAISS_THROW_IF_NOT_FMT(
                assign == 1,
                "max_assign = %zu, expected 1: to FAISS copies are vectors of "
                "their own",
                assign);
        FAISS_THROW_IF_NOT_MSG(
                !dynamic_cast<faiss_ext::IndexIVFRaBitQGMM*>(gmm),
                "to_faiss: an index of codes alone (RaBitQ) has no vectors "
                "that FAISS could search");
    }
    faiss::VectorIOWriter writer;
    {
        const LongCall long_call;
        faiss::write_index(self.index.get(), &writer);
    }
    const size_t size = writer.data.size();
    return to_numpy(std::move(writer.data), {size});
}

/// Puts a GMM index in the place of the IVF index inside. After an error the
/// index is good for nothing.
void swap_to_gmm(
        PyIndex& self,
        const std::string& covariance_type,
        bool keep_centroids) {
    const gmm::Covariance covariance = list_covariance(covariance_type);
    const LongCall long_call;
    self.index = faiss_ext::without_id_maps(std::move(self.index));
    faiss::Index* root = self.index.get();
    faiss::Index** place = faiss_ext::unwrap(&root);
    auto ivf = dynamic_cast<faiss::IndexIVF*>(*place);
    FAISS_THROW_IF_NOT_MSG(
            ivf,
            "swap_to_gmm: the index has no inverted lists, expected an "
            "IndexIVFFlat, IndexIVFPQ or IndexIVFScalarQuantizer");
    FAISS_THROW_IF_NOT_MSG(
            !dynamic_cast<faiss_ext::IVFGMM*>(ivf),
            "swap_to_gmm: the index is a GMM index already");
    ivf->cp.frozen_centroids = keep_centroids;
    std::unique_ptr<faiss::Index> made =
            faiss_ext::swap_to_gmm(*ivf, covariance);
    if (root == ivf) {
        self.index = std::move(made);
        return;
    }
    *place = made.release();
    delete ivf;
}

} // namespace

void bind_index_io(nb::module_& m) {
    m.def(
            "write_index",
            [](const PyIndex& self, const std::filesystem::path& path) {
                const LongCall long_call;
                faiss_ext::write_index(self.index.get(), path.c_str());
            },
            nb::arg("index"),
            nb::arg("path"));
    m.def(
            "read_index",
            [](const std::filesystem::path& path, int io_flags) {
                const LongCall long_call;
                return own(faiss_ext::read_index(path.c_str(), io_flags));
            },
            nb::arg("path"),
            nb::arg("io_flags") = 0);
    m.def("serialize", &serialize, nb::arg("index"));
    m.def("serialize_stock", &serialize_stock, nb::arg("index"));
    m.def("deserialize", &deserialize, nb::arg("bytes").noconvert());
    m.def("swap_to_gmm",
          &swap_to_gmm,
          nb::arg("index"),
          nb::arg("covariance_type"),
          nb::arg("keep_centroids"));
    m.attr("IO_FLAG_MMAP") = int(faiss::IO_FLAG_MMAP);
    m.attr("IO_FLAG_READ_ONLY") = int(faiss::IO_FLAG_READ_ONLY);
    m.attr("IO_FLAG_ONDISK_SAME_DIR") = int(faiss::IO_FLAG_ONDISK_SAME_DIR);
    m.attr("METRIC_L2") = int(faiss::METRIC_L2);
    m.attr("METRIC_INNER_PRODUCT") = int(faiss::METRIC_INNER_PRODUCT);
}

} // namespace faiss_ext_python
