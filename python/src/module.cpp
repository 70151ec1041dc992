#include <omp.h>

#include <exception>
#include <stdexcept>
#include <string>

#include <nanobind/stl/string.h>

#include <faiss/impl/FaissException.h>

#include "Backend.h"
#include "bindings.h"
#include "faiss_ext/impl/errors.h"
#include "interrupt.h"

namespace faiss_ext_python {

namespace {

/// The mixture's side calls vectors a source; in Python they are x.
std::string as_in_python(std::string message) {
    const std::string source = "source: ";
    if (message.rfind(source, 0) == 0) {
        message.replace(0, source.size(), "x: ");
    }
    return message;
}

/// Names of files that are no UTF-8 become what os.fsdecode makes of them.
void set_error(PyObject* type, const std::string& message) {
    PyObject* text = PyUnicode_DecodeUTF8(
            message.data(), Py_ssize_t(message.size()), "surrogateescape");
    if (text) {
        PyErr_SetObject(type, text);
        Py_DECREF(text);
    }
}

PyObject* faiss_error = nullptr;

void translate(const std::exception_ptr& p, void*) {
    try {
        std::rethrow_exception(p);
    } catch (const PythonErrorIsSet&) {
    } catch (const faiss::FaissException& e) {
        // An interrupt has set Python's exception already. FAISS's `msg` may
        // end with a zero byte.
        if (!PyErr_Occurred()) {
            set_error(
                    faiss_error,
                    as_in_python(faiss_ext::without_place(e.what())));
        }
    } catch (const std::invalid_argument& e) {
        set_error(PyExc_ValueError, as_in_python(e.what()));
    }
}

} // namespace

} // namespace faiss_ext_python

NB_MODULE(_core, m) {
    using namespace faiss_ext_python;
    nb::set_leak_warnings(false); // of what daemon threads hold at the end
    m.doc() = "What of faiss_ext is C++.";
    // As faiss raises RuntimeError, and scikit-learn ValueError.
    faiss_error = PyErr_NewExceptionWithDoc(
            "faiss_ext.FaissError",
            "Wrong input or a state in which a call cannot be: the message "
            "names the argument, its value and what was expected.",
            nb::make_tuple(
                    nb::handle(PyExc_RuntimeError),
                    nb::handle(PyExc_ValueError))
                    .ptr(),
            nullptr);
    m.attr("FaissError") = nb::handle(faiss_error);
    nb::register_exception_translator(translate);
    install_interrupt();

    m.attr("__version__") = FAISS_EXT_VERSION;
    m.attr("faiss_version") = FAISS_VERSION;
    m.def(
            "cuda_available",
            [] { return gmm::cuda_available(); },
            "Whether the package was built with CUDA and a usable GPU is "
            "there.");
    m.def(
            "why_no_cuda",
            [] {
                std::string why;
                return gmm::cuda_available(&why) ? std::string() : why;
            },
            "What is missing for CUDA; empty if nothing is.");
    m.def(
            "omp_get_max_threads",
            [] { return omp_get_max_threads(); },
            "Threads that calls from this thread use.");
    m.def(
            "omp_set_num_threads",
            [](nb::handle n) {
                int threads = 0;
                if (!nb::try_cast(n, threads) || threads < 1) {
                    const std::string message = std::string("n = ") +
                            nb::repr(n).c_str() +
                            ", expected at least 1 thread, an integer of 32 "
                            "bits";
                    if (PyLong_Check(n.ptr())) {
                        throw nb::value_error(message.c_str());
                    }
                    throw nb::type_error(message.c_str());
                }
                omp_set_num_threads(threads);
            },
            nb::arg("n").none(),
            "Sets how many threads calls from this thread use.");

    nb::class_<PyIndex> index(m, "Index");
    bind_index(m, index);
    bind_search(m, index);
    bind_sources(index);
    bind_index_io(m);
    bind_mixture(m);
    bind_shards(m);
}
