#include <string>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "array_source.h"
#include "bindings.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/ondisk.h"
#include "faiss_ext/sources.h"
#include "interrupt.h"
#include "training.h"

namespace faiss_ext_python {

void bind_sources(nb::class_<PyIndex>& index) {
    index.def(
            "train_source",
            [](PyIndex& self, const Vectors& x) {
                const auto source = array_source(x);
                const LongCall long_call;
                train_or_leave(*self.index, source->n, [&] {
                    faiss_ext::train(self.index.get(), *source);
                });
            },
            nb::arg("x"));
    index.def(
            "add_source",
            [](PyIndex& self, const AnyMatrix& x) {
                const auto source = array_source(x);
                check_graph(
                        faiss_ext::unwrap(self.index.get()), "x", source->n);
                {
                    const LongCall long_call;
                    faiss_ext::add(self.index.get(), *source);
                }
                raise_interrupt();
            },
            nb::arg("x"));
    index.def(
            "merge_ondisk",
            [](PyIndex& self,
               const std::vector<std::string>& parts,
               const std::string& ivfdata,
               bool shift_ids) {
                {
                    const LongCall long_call;
                    faiss_ext::merge_ondisk(
                            self.index.get(), parts, ivfdata, shift_ids);
                }
                raise_interrupt();
            },
            nb::arg("parts"),
            nb::arg("ivfdata"),
            nb::arg("shift_ids"));
}

} // namespace faiss_ext_python
