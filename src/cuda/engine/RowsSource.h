#pragma once

#include "VectorSource.h"

namespace gmm::cuda {

/// Rows as a source, for the feeder.
struct RowsSource : VectorSource {
    explicit RowsSource(const Rows& x) : rows_(x) {
        n = x.n;
        d = x.d;
        type = x.type;
    }

    Rows rows(size_t begin, size_t count, std::vector<std::byte>&)
            const override {
        Rows part = rows_;
        part.data = static_cast<const char*>(rows_.data) + begin * rows_.stride;
        part.n = count;
        return part;
    }

private:
    Rows rows_;
};

} // namespace gmm::cuda
