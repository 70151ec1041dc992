#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace faiss_ext {

/** FNV-1a over 64-bit words, with a rotation so that high bits mix, too.
 *
 * Each step is a bijection of the state: a change in one word is always
 * seen. */
struct Checksum {
    uint64_t state = 0xcbf29ce484222325;
    uint64_t length = 0;
    std::array<uint8_t, 8> pending = {};

    void add(const void* data, size_t size) {
        auto bytes = static_cast<const uint8_t*>(data);
        while (size > 0) {
            const size_t have = length % 8;
            if (have == 0 && size >= 8) {
                const size_t words = size / 8;
                for (size_t i = 0; i < words; i++) {
                    mix(bytes + 8 * i);
                }
                bytes += 8 * words;
                size -= 8 * words;
                length += 8 * words;
                continue;
            }
            const size_t take = std::min(size, 8 - have);
            memcpy(pending.data() + have, bytes, take);
            bytes += take;
            size -= take;
            length += take;
            if (length % 8 == 0) {
                mix(pending.data());
            }
        }
    }

    uint64_t value() const {
        Checksum last = *this;
        std::fill(
                last.pending.begin() + length % 8,
                last.pending.end(),
                uint8_t(0));
        last.mix(last.pending.data());
        last.mix(&length);
        return last.state;
    }

private:
    void mix(const void* word) {
        uint64_t w;
        memcpy(&w, word, 8);
        state = std::rotl(state ^ w, 29) * 0x100000001b3;
    }
};

} // namespace faiss_ext
