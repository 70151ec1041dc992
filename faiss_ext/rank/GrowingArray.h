#pragma once

#include <algorithm>
#include <cstddef>
#include <utility>
#include <vector>

namespace faiss_ext {

/** A vector that does not clear what it grows by, and whose memory the thread's
 * next one takes over: a search of one query would spend a third of its time
 * growing its arrays.
 */
template <class T>
class GrowingArray {
public:
    GrowingArray() {
        std::vector<std::vector<T>>* spare = spares();
        if (spare && !spare->empty()) {
            items = std::move(spare->back());
            spare->pop_back();
        }
    }
    GrowingArray(GrowingArray&& other) noexcept
            : items(std::move(other.items)), n(std::exchange(other.n, 0)) {}
    GrowingArray& operator=(GrowingArray&&) = delete;
    ~GrowingArray() {
        if (items.empty() || items.size() * sizeof(T) > kSpareBytes) {
            return;
        }
        std::vector<std::vector<T>>* spare = spares();
        if (spare && spare->size() < kSpares) {
            spare->push_back(std::move(items));
        }
    }

    void clear() {
        n = 0;
    }
    size_t size() const {
        return n;
    }
    T& operator[](size_t i) {
        return items[i];
    }
    const T* data() const {
        return items.data();
    }
    /// Adds m elements of any value; where the first of them is.
    T* grow(size_t m) {
        if (n + m > items.size()) {
            items.resize(std::max(n + m, 2 * items.size()));
        }
        n += m;
        return items.data() + n - m;
    }
    void shrink(size_t size) {
        n = size;
    }

private:
    static constexpr size_t kSpareBytes = size_t(1) << 20;
    static constexpr size_t kSpares = 8;

    struct Spares {
        std::vector<std::vector<T>> arrays;

        Spares() {
            arrays.reserve(kSpares);
        }
        ~Spares() {
            gone = true;
        }
    };
    /// Never destroyed, as what is initialised by a constant is.
    static inline thread_local bool gone = false;

    /// nullptr once the thread ends: destructors that come later may search.
    static std::vector<std::vector<T>>* spares() {
        if (gone) {
            return nullptr;
        }
        thread_local Spares spares;
        return &spares.arrays;
    }

    std::vector<T> items;
    size_t n = 0;
};

} // namespace faiss_ext
