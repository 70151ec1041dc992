#include "interrupt.h"

#include <chrono>
#include <memory>
#include <thread>

#include <faiss/impl/AuxIndexStructures.h>

namespace faiss_ext_python {

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kBetweenLooks = std::chrono::milliseconds(50);

/// Long calls that this thread is in.
thread_local int depth = 0;
thread_local Clock::time_point last_look;

/// take() asks for the GIL. Once the interpreter is at its end, Python before
/// 3.14 ends a (daemon) thread that asks for it by unwinding its stack, which
/// in C++ ends the process; later ones let it wait for the process to end.
template <class Take>
void take_gil(Take&& take) {
    try {
        take();
    } catch (...) { // Python itself throws nothing else
        while (true) {
            std::this_thread::sleep_for(std::chrono::hours(1));
        }
    }
}

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
    take_gil([&] { PyEval_RestoreThread(state); });
}

WithGil::WithGil() {
    take_gil([&] { state = PyGILState_Ensure(); });
}

WithGil::~WithGil() {
    PyGILState_Release(state);
}

bool interrupted() {
    const auto now = Clock::now();
    if (depth == 0 || now - last_look < kBetweenLooks) {
        return false;
    }
    last_look = now;
    const WithGil gil;
    // FAISS may ask again before its own exception arrives.
    return PyErr_Occurred() || PyErr_CheckSignals() != 0;
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
