// Index files. FUZZ_TRAILER and FUZZ_STOCK change one part and mend the
// checksums, since whoever makes a file that lies makes them, too; FUZZ_RAW
// leaves them. What is read is used in every way.

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <random>
#include <vector>

#include <faiss/IndexIVF.h>
#include <faiss/impl/AuxIndexStructures.h>
#include <faiss/impl/FaissException.h>
#include <faiss/impl/IDSelector.h>
#include <faiss/impl/io.h>

#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/index_io.h"
#include "faiss_ext/io/Checksum.h"
#include "faiss_ext/io/format.h"
#include "faiss_ext/ivflib.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

using namespace faiss_ext;

// A length that lies is an exception, not the end: as in a process that has
// little memory.
constexpr size_t kMostMemory = size_t(256) << 20;

void* operator new(size_t size) {
    void* out =
            size <= kMostMemory ? malloc(std::max<size_t>(size, 1)) : nullptr;
    if (!out) {
        throw std::bad_alloc();
    }
    return out;
}
void* operator new[](size_t size) {
    return operator new(size);
}
void operator delete(void* p) noexcept {
    free(p);
}
void operator delete[](void* p) noexcept {
    free(p);
}
void operator delete(void* p, size_t) noexcept {
    free(p);
}
void operator delete[](void* p, size_t) noexcept {
    free(p);
}

namespace {

using Bytes = std::vector<uint8_t>;

struct Parts {
    Bytes stock, payload;
};

/// False for what is no file of ours.
[[maybe_unused]] bool split(const uint8_t* data, size_t size, Parts& out) {
    constexpr size_t kFrame = sizeof(TrailerHead) + 8;
    if (size > sizeof(kCodesAlone) &&
        memcmp(data, &kCodesAlone, sizeof(kCodesAlone)) == 0) {
        data += sizeof(kCodesAlone); // what is read does not need it
        size -= sizeof(kCodesAlone);
    }
    if (size < kStampEnd + kFrame) {
        return false;
    }
    uint64_t words[2];
    memcpy(words, data + kStampBegin, sizeof(words));
    if (words[0] != kStamp || words[1] < kStampEnd ||
        words[1] > size - kFrame) {
        return false;
    }
    out.stock.assign(data, data + words[1]);
    out.payload.assign(data + words[1] + sizeof(TrailerHead), data + size - 8);
    return true;
}

[[maybe_unused]] Bytes join(Parts& parts) {
    const uint64_t words[2] = {kStamp, parts.stock.size()};
    memcpy(parts.stock.data() + kStampBegin, words, sizeof(words));
    Checksum stock, trailer;
    stock.add(parts.stock.data(), parts.stock.size());
    TrailerHead head;
    head.stock_length = parts.stock.size();
    head.stock_checksum = stock.value();
    head.payload_length = parts.payload.size();
    trailer.add(&head, sizeof(head));
    trailer.add(parts.payload.data(), parts.payload.size());
    const uint64_t value = trailer.value();
    Bytes out = parts.stock;
    auto append = [&](const void* data, size_t size) {
        auto begin = static_cast<const uint8_t*>(data);
        out.insert(out.end(), begin, begin + size);
    };
    append(&head, sizeof(head));
    append(parts.payload.data(), parts.payload.size());
    append(&value, sizeof(value));
    return out;
}

template <class T>
void put_at(Bytes& bytes, size_t at, T value) {
    memcpy(bytes.data() + at, &value, sizeof(value));
}

/// A number such as lengths, counts and measures can be, somewhere; most often
/// near the beginning, where the headers are.
[[maybe_unused]] void mutate(Bytes& bytes, std::mt19937& random) {
    if (bytes.size() < 8) {
        bytes.resize(8);
    }
    const size_t most = bytes.size() - 7;
    const size_t at =
            random() % (random() % 3 ? std::min<size_t>(most, 250) : most);
    constexpr uint64_t kWords[] = {
            0,          1,          2,          3,          7,
            8,          9,          16,         255,        256,
            65535,      1u << 16,   1u << 31,   1ull << 32, 0xffffffff,
            1ull << 40, 1ull << 60, 1ull << 61, 1ull << 62, 1ull << 63,
            ~0ull,      ~0ull - 1};
    constexpr float kFloats[] = {
            0,
            -0.0f,
            1,
            -1,
            0.5f,
            std::numeric_limits<float>::quiet_NaN(),
            std::numeric_limits<float>::infinity(),
            1e38f,
            -1e38f,
            1e-45f,
            1e9f};
    uint64_t word;
    memcpy(&word, bytes.data() + at, 8);
    switch (random() % 6) {
        case 0: {
            const size_t size = bytes.size();
            bytes.resize(size + 64);
            bytes.resize(LLVMFuzzerMutate(bytes.data(), size, bytes.size()));
            break;
        }
        case 1:
            put_at(bytes, at, word + (random() % 2 ? 1 : -1));
            break;
        case 2:
            put_at(bytes, at, kWords[random() % std::size(kWords)]);
            break;
        case 3:
            put_at(bytes, at, uint32_t(kWords[random() % std::size(kWords)]));
            break;
        case 4:
            put_at(bytes, at, kFloats[random() % std::size(kFloats)]);
            break;
        default:
            bytes[at] ^= 1 << random() % 8;
    }
}

/// FaissException and a lack of memory are how a call may end.
template <class F>
void call(F&& f) {
    try {
        f();
    } catch (const faiss::FaissException&) {
    } catch (const std::bad_alloc&) {
    } catch (const std::length_error&) { // of memory that cannot be
    }
}

void use(faiss::Index& index) {
    constexpr size_t n = 3, k = 5;
    std::vector<float> x(n * index.d), distances(n * k);
    std::vector<idx_t> ids(n * k);
    for (size_t i = 0; i < x.size(); i++) {
        x[i] = float(i * 7919 % 13) - 6;
    }
    auto search = [&](size_t nq) {
        call([&] {
            index.search(nq, x.data(), k, distances.data(), ids.data());
        });
    };
    search(n);
    IVFGMM* gmm = extract_gmm(&index);
    if (!gmm) {
        return;
    }
    gmm->target_recall = 0.8f;
    search(n);
    gmm->target_recall = 0;
    for (auto order :
         {ProbeOrder::codes,
          ProbeOrder::log_likelihood,
          ProbeOrder::scale_free,
          ProbeOrder::calibrated}) {
        gmm->probe_order = order;
        search(1);
        gmm->probe_mass = 0.5f;
        search(1);
        gmm->probe_mass = 1;
    }
    call([&] {
        faiss::RangeSearchResult result(1);
        index.range_search(1, x.data(), 3, &result);
    });
    call([&] { index.add(n, x.data()); });
    call([&] { gmm->optimize(); });
    call([&] { index.remove_ids(faiss::IDSelectorRange(0, 5)); });
    search(n);
    call([&] {
        faiss::VectorIOWriter writer;
        faiss_ext::write_index(&index, &writer);
        // what was written is read
        faiss::VectorIOReader reader;
        reader.data = writer.data;
        try {
            delete faiss_ext::read_index(
                    static_cast<faiss::IOReader*>(&reader));
        } catch (const faiss::FaissException& e) {
            fprintf(stderr, "written, and not readable: %s\n", e.what());
            abort();
        }
    });
}

} // namespace

#ifndef FUZZ_RAW
extern "C" size_t LLVMFuzzerCustomMutator(
        uint8_t* data, size_t size, size_t most, unsigned seed) {
    std::mt19937 random(seed);
    Parts parts;
    if (!split(data, size, parts)) {
        return size;
    }
#ifdef FUZZ_TRAILER
    Bytes& part = parts.payload;
#else
    Bytes& part = parts.stock;
#endif
    for (unsigned i = 0; i <= random() % 4; i++) {
        mutate(part, random);
    }
    if (parts.stock.size() < kStampEnd) {
        return size;
    }
    const Bytes out = join(parts);
    if (out.size() > most) {
        return size;
    }
    memcpy(data, out.data(), out.size());
    return out.size();
}
#endif

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    // Files with FAISS's own header are FAISS's affair.
    uint64_t words[2] = {};
    if (size >= kStampEnd) {
        memcpy(words, data + kStampBegin, sizeof(words));
    }
    if (words[0] == kFaissWord && words[1] == kFaissWord) {
        return 0;
    }
    std::unique_ptr<faiss::Index> index;
    call([&] {
        faiss::VectorIOReader reader;
        reader.data.assign(data, data + size);
        index.reset(
                faiss_ext::read_index(static_cast<faiss::IOReader*>(&reader)));
    });
    if (index && index->d <= 4096) {
        use(*index);
    }
    return 0;
}
