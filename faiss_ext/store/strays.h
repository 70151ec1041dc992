#pragma once

#include <cstddef>

#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

/// Takes in what FAISS's functions appended to a list behind our back; the
/// list is as it was if it throws. Returns whether there was anything.
bool adopt_strays(GMMIndexRef index, size_t list);

/// The same for all lists, none of which is changed if one has become shorter
/// or max_assign is not what the index was filled with.
void adopt_strays(GMMIndexRef index);

} // namespace faiss_ext
