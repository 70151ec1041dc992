#pragma once

#include <Python.h>

namespace faiss_ext_python {

/// Lets FAISS's InterruptCallback ask Python whether Ctrl-C was pressed.
void install_interrupt();

/** What takes long runs inside one of these: other Python threads run
 * meanwhile, and FAISS's checks for an interrupt reach Python's signals. */
struct LongCall {
    LongCall();
    ~LongCall();
    LongCall(const LongCall&) = delete;
    LongCall& operator=(const LongCall&) = delete;

private:
    PyThreadState* state;
};

/// What calls Python inside a LongCall runs inside one of these.
struct WithGil {
    WithGil();
    ~WithGil();
    WithGil(const WithGil&) = delete;
    WithGil& operator=(const WithGil&) = delete;

private:
    PyGILState_STATE state;
};

/// Whether a signal handler has raised; at most one look each 50 ms. In
/// threads that are not inside a LongCall: false.
bool interrupted();

/// Thrown where Python's exception is set already.
struct PythonErrorIsSet {};

/// Throws PythonErrorIsSet if interrupted.
void check_interrupt();

/// After a LongCall: throws PythonErrorIsSet if a signal handler has raised and
/// the call came to its end all the same, as additions do once all are in.
void raise_interrupt();

} // namespace faiss_ext_python
