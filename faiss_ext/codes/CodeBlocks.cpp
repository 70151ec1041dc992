#include "faiss_ext/codes/CodeBlocks.h"

namespace faiss_ext {

void CodeBlocks::resize(size_t n) {
    if (!mapped) {
        own.resize(n);
    } else if (n <= n_mapped) {
        n_mapped = n;
    } else {
        AlignedBytes longer(n);
        std::copy_n(data(), n_mapped, longer.data());
        own = std::move(longer);
        mapped.reset();
    }
}

} // namespace faiss_ext
