#include "Error.h"

#include <cstdarg>
#include <cstdio>

namespace gmm {

void throw_invalid(const char* format, ...) {
    char message[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(message, sizeof(message), format, arguments);
    va_end(arguments);
    throw InvalidArgument(message);
}

void check_array(const char* name, const void* array, size_t rows) {
    if (!array && rows > 0) {
        throw_invalid("%s = nullptr, expected %zu rows", name, rows);
    }
}

} // namespace gmm
