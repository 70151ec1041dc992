#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>

namespace gmm {

/// Wrong input: the message names the argument, its value and what was
/// expected. Bad luck (no memory, no device) is a DeviceError or the standard
/// library's own exception instead.
struct InvalidArgument : std::invalid_argument {
    using std::invalid_argument::invalid_argument;
};

/// A device that is missing, full, or lost in mid-run.
struct DeviceError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Throws InvalidArgument with a message in printf's format.
[[noreturn]] void throw_invalid(const char* format, ...)
        __attribute__((format(printf, 1, 2)));

/// Throws InvalidArgument naming an array that is not there, but has rows.
void check_array(const char* name, const void* array, size_t rows);

} // namespace gmm
