#include "interrupt.h"

#include <chrono>
#include <memory>

#include <faiss/impl/AuxIndexStructures.h>

namespace faiss_ext_python {

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kBetweenLooks = std::chrono::milliseconds(50);

/// Long calls that this thread is in.
thread_local int depth = 0;
thread_local Clock::time_point last_look;

struct PythonInterruptCallback : faiss::InterruptCallback {
    bool want_interrupt() override {
        return interrupted();
    }
};

} // namespace

void install_interrupt() {
    faiss::InterruptCallback::instance =
            std::make_unique<PythonInterruptCallback>();
}

LongCall::LongCall() : state(PyEval_SaveThread()) {
    depth++;
    last_look = Clock::now();
}

LongCall::~LongCall() {
    depth--;
    PyEval_RestoreThread(state);
}

bool interrupted() {
    const auto now = Clock::now();
    if (depth == 0 || now - last_look < kBetweenLooks) {
        return false;
    }
    last_look = now;
    const PyGILState_STATE gil = PyGILState_Ensure();
    // FAISS may ask again before its own exception arrives.
    const bool raised = PyErr_Occurred() || PyErr_CheckSignals() != 0;
    PyGILState_Release(gil);
    return raised;
}

void raise_interrupt() {
    if (PyErr_Occurred()) {
        throw PythonErrorIsSet();
    }
}

void check_interrupt() {
    if (interrupted()) {
        throw PythonErrorIsSet();
    }
}

} // namespace faiss_ext_python
