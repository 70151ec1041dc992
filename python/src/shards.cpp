#include <nanobind/stl/filesystem.h>
#include <nanobind/stl/vector.h>

#include <faiss/index_io.h>

#include "bindings.h"
#include "faiss_ext/ListShard.h"
#include "faiss_ext/index_io.h"
#include "interrupt.h"
#include "parameters.h"

namespace faiss_ext_python {

namespace {

using faiss_ext::ListShard;
/// Messages as Python sends them.
using Messages = std::vector<std::vector<nb::bytes>>;

ListShard::Bytes from_python(const nb::bytes& bytes) {
    auto begin = static_cast<const uint8_t*>(bytes.data());
    return {begin, begin + bytes.size()};
}

nb::bytes to_python(const ListShard::Bytes& bytes) {
    return nb::bytes(bytes.data(), bytes.size());
}

/// D and I if this was the last round, else the requests to the shards.
nb::tuple step(
        const ListShard& self,
        Matrix<const float> x,
        size_t k,
        const SearchParameters& params,
        const Messages& messages) {
    ListShard::Answers answers;
    for (const auto& round : messages) {
        answers.emplace_back();
        for (const nb::bytes& bytes : round) {
            answers.back().push_back(from_python(bytes));
        }
    }
    const size_t n = x.shape(0);
    ListShard::Step out;
    {
        const LongCall long_call;
        Parameters all;
        out = self.step(n, x.data(), k, all.make(self.ivf(), params), answers);
    }
    if (out.done) {
        return nb::make_tuple(
                to_numpy(std::move(out.distances), {n, k}),
                to_numpy(std::move(out.labels), {n, k}),
                nb::none());
    }
    nb::list requests;
    for (const ListShard::Bytes& request : out.requests) {
        requests.append(to_python(request));
    }
    return nb::make_tuple(nb::none(), nb::none(), requests);
}

} // namespace

void bind_shards(nb::module_& m) {
    nb::class_<ListShard>(m, "ListShard")
            .def(
                    "__init__",
                    [](ListShard* self,
                       const std::filesystem::path& path,
                       size_t shard,
                       size_t shards) {
                        const LongCall long_call;
                        std::unique_ptr<faiss::Index> index(
                                faiss_ext::read_index(
                                        path.c_str(),
                                        faiss::IO_FLAG_MMAP |
                                                faiss::IO_FLAG_ONDISK_SAME_DIR |
                                                faiss::IO_FLAG_READ_ONLY));
                        new (self) ListShard(std::move(index), shard, shards);
                    },
                    nb::arg("path"),
                    nb::arg("shard"),
                    nb::arg("shards"))
            .def(
                    "transform",
                    [](const ListShard& self, Matrix<const float> x) {
                        const size_t n = x.shape(0);
                        std::vector<float> out;
                        {
                            const LongCall long_call;
                            out = self.transform(n, x.data());
                        }
                        return to_numpy(
                                std::move(out), {n, size_t(self.ivf().d)});
                    },
                    nb::arg("x").noconvert())
            .def("step",
                 &step,
                 nb::arg("x").noconvert(),
                 nb::arg("k"),
                 nb::arg("params"),
                 nb::arg("answers"))
            .def(
                    "answer",
                    [](const ListShard& self,
                       Matrix<const float> x,
                       size_t k,
                       const SearchParameters& params,
                       const nb::bytes& message) {
                        const auto request = from_python(message);
                        ListShard::Bytes out;
                        {
                            const LongCall long_call;
                            Parameters all;
                            out = self.answer(
                                    x.shape(0),
                                    x.data(),
                                    k,
                                    request,
                                    all.make(self.ivf(), params));
                        }
                        return to_python(out);
                    },
                    nb::arg("x").noconvert(),
                    nb::arg("k"),
                    nb::arg("params"),
                    nb::arg("request"));
}

} // namespace faiss_ext_python
