#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>

#include "faiss_ext/rank/GrowingArray.h"

namespace faiss_ext {

/** Hands out numbers in the order of keys >= 0, nearly: keys within 1/256 of
 * an octave are equal.
 *
 * Both ends cost O(1), and what is never asked for is never sorted. A bucket
 * is a linked list; its number comes from the bits of the key, since floats
 * that are not negative are in the order of their bits.
 */
class BucketQueue {
public:
    /// Empties it. Keys from high / 2^kOctaves (fp32's resolution) to high are
    /// told apart.
    void start(float high) {
        first.fill(-1);
        next.clear();
        base = key_of(high) - kBuckets;
        cursor = kBuckets;
    }

    /// Numbers are given out in order: 0, 1, 2, ...
    void push(const float* keys, size_t n) {
        const size_t old = next.size();
        int32_t* after = next.grow(n);
        for (size_t j = 0; j < n; j++) {
            const int32_t bucket =
                    std::clamp(key_of(keys[j]) - base, 0, kBuckets - 1);
            after[j] = first[bucket];
            first[bucket] = int32_t(old + j);
            cursor = std::min(cursor, bucket);
        }
    }

    /// False if it is empty.
    bool pop(uint32_t& number) {
        for (; cursor < kBuckets; cursor++) {
            if (first[cursor] >= 0) {
                number = uint32_t(first[cursor]);
                first[cursor] = next[number];
                return true;
            }
        }
        return false;
    }

private:
    static constexpr int kOctaves = 24;
    static constexpr int kMantissaBits = 8;
    static constexpr int32_t kBuckets = kOctaves << kMantissaBits;

    static int32_t key_of(float key) {
        return std::bit_cast<int32_t>(key) >> (23 - kMantissaBits);
    }

    std::array<int32_t, kBuckets> first; ///< number, -1: none
    GrowingArray<int32_t> next;          ///< of each number
    int32_t base = 0;                    ///< of bucket 0
    int32_t cursor = 0;                  ///< nothing below
};

} // namespace faiss_ext
