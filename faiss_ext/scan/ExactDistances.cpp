#include "faiss_ext/scan/ExactDistances.h"

#include <faiss/IndexIVFFlat.h>

#include "faiss_ext/coarse/coarse.h"

namespace faiss_ext {

ExactDistances::ExactDistances(const faiss::IndexIVF& ivf_in)
        : ivf(ivf_in), d(ivf_in.d), code_size(ivf_in.code_size),
          similarity(is_ip(ivf_in)),
          flat(dynamic_cast<const faiss::IndexIVFFlat*>(&ivf_in) &&
               ivf_in.code_size == ivf_in.d * sizeof(float)),
          in_memory(dynamic_cast<const faiss::ArrayInvertedLists*>(
                  ivf_in.invlists)),
          decoded(flat && in_memory ? 0 : ivf_in.d) {}

} // namespace faiss_ext
