#include "faiss_ext/io/stock_layout.h"

#include <vector>

#include <faiss/impl/FaissAssert.h>

namespace faiss_ext {

namespace {

/// Wrappers, quantizer and its storage are five; more are an attack on the
/// stack.
constexpr int kMostNested = 16;
constexpr uint64_t kMostLists = uint64_t(1) << 27;
constexpr uint64_t kMostCodeSize = uint64_t(1) << 32;
constexpr uint64_t kMostDimensions = uint64_t(1) << 24;

class Walk {
public:
    Walk(faiss::IOReader* reader,
         const Seekable& place,
         uint64_t length,
         bool strict)
            : reader(reader), place(place), end(place.tell() + length),
              strict(strict) {}

    struct Header {
        uint64_t d = 0, ntotal = 0;
    };

    /// Where a type is not known, nothing behind it is looked at.
    Header index(int depth);

private:
    void require(bool condition, const char* what) const {
        FAISS_THROW_IF_NOT_FMT(
                condition,
                "read_index: \"%s\" is corrupted (%s)",
                reader->name.c_str(),
                what);
    }

    bool foreign(uint32_t type) {
        FAISS_THROW_IF_NOT_FMT(
                !strict,
                "read_index: \"%s\" holds a \"%s\", which no index with a GMM "
                "trailer is made of",
                reader->name.c_str(),
                faiss::fourcc_inv_printable(type).c_str());
        known = false;
        return false;
    }

    uint64_t left() const {
        return end - place.tell();
    }

    void read(void* out, uint64_t bytes) {
        require(bytes <= left() && (*reader)(out, 1, bytes) == bytes, "length");
    }

    template <class T>
    T number() {
        T out;
        read(&out, sizeof(out));
        return out;
    }

    void skip(uint64_t bytes) {
        require(bytes <= left(), "a length");
        place.seek(place.tell() + bytes);
    }

    /// Goes past an array, its length first, and returns that.
    uint64_t array(size_t element) {
        const uint64_t n = number<uint64_t>();
        require(n <= left() / element, "a length");
        skip(n * element);
        return n;
    }

    Header header();
    void transform(int depth);
    Header flat();
    Header graph(int depth);
    Header ivf(uint32_t type, int depth);
    uint64_t product_quantizer(uint64_t d, uint64_t most_bits); ///< M
    bool lists(uint64_t nlist);
    void plain_lists(uint64_t nlist);
    void block_lists(uint64_t nlist);

    faiss::IOReader* reader;
    const Seekable& place;
    const uint64_t end;
    bool strict;
    bool known = true;
};

constexpr uint32_t type_of(const char (&name)[5]) {
    return uint32_t(uint8_t(name[0])) | uint32_t(uint8_t(name[1])) << 8 |
            uint32_t(uint8_t(name[2])) << 16 | uint32_t(uint8_t(name[3])) << 24;
}

Walk::Header Walk::header() {
    const auto d = number<int32_t>();
    const auto ntotal = number<int64_t>();
    require(d > 0 && uint64_t(d) < kMostDimensions, "d");
    require(ntotal >= 0 && ntotal < INT64_C(1) << 48, "ntotal");
    skip(16 + 1);                // two words that are not used, is_trained
    if (number<int32_t>() > 1) { // the metric
        skip(4);                 // its argument
    }
    return {uint64_t(d), uint64_t(ntotal)};
}

void Walk::transform(int depth) {
    require(depth < kMostNested, "nesting");
    const auto type = number<uint32_t>();
    switch (type) {
        case type_of("Pcam"):
            skip(4); // epsilon
            [[fallthrough]];
        case type_of("PcAm"):
            skip(4); // balanced_bins
            [[fallthrough]];
        case type_of("PCAm"):
            skip(4 + 1); // eigen_power, random_rotation
            for (int i = 0; i < 3; i++) {
                array(4); // mean, eigenvalues, PCAMat
            }
            break;
        case type_of("Viqm"):
            skip(8); // max_iter, seed
            break;
        case type_of("rrot"):
        case type_of("LTra"):
            break;
        case type_of("RmDT"):
        case type_of("VCnt"):
            array(4);
            break;
        case type_of("VNrm"):
        case type_of("HRot"):
            skip(4);
            break;
        case type_of("Viqt"):
            array(4); // mean
            skip(1);  // do_pca
            for (int i = 0; i < 2 && known; i++) {
                transform(depth + 1);
            }
            break;
        default:
            foreign(type);
    }
    switch (type) {
        case type_of("Pcam"):
        case type_of("PcAm"):
        case type_of("PCAm"):
        case type_of("Viqm"):
        case type_of("rrot"):
        case type_of("LTra"):
            skip(1); // have_bias
            array(4);
            array(4);
            break;
        default:
            break;
    }
    if (known) {
        skip(4 + 4 + 1); // d_in, d_out, is_trained
    }
}

Walk::Header Walk::flat() {
    const Header head = header();
    const uint64_t floats = array(4);
    require(floats % head.d == 0 && floats / head.d == head.ntotal,
            "number of vectors");
    return head;
}

Walk::Header Walk::graph(int depth) {
    const Header head = header();
    array(8); // assign_probas
    array(4); // cum_nneighbor_per_level
    require(array(4) == head.ntotal, "levels of HNSW");
    require(array(8) == head.ntotal + 1, "offsets of HNSW");
    array(4);    // neighbors
    skip(5 * 4); // entry point, max_level, three settings
    const Header stored = index(depth + 1);
    require(!known || (stored.d == head.d && stored.ntotal == head.ntotal),
            "storage of HNSW");
    return head;
}

uint64_t Walk::product_quantizer(uint64_t d, uint64_t most_bits) {
    require(number<uint64_t>() == d, "d of the product quantizer");
    const auto M = number<uint64_t>();
    require(M > 0 && M <= d && d % M == 0, "M of the product quantizer");
    const auto bits = number<uint64_t>();
    require(bits > 0 && bits <= most_bits, "nbits of the product quantizer");
    require(array(4) == d << bits, "centroids of the product quantizer");
    return M;
}

void Walk::plain_lists(uint64_t nlist) {
    const auto code_size = number<uint64_t>();
    require(code_size < kMostCodeSize, "code size");
    const auto form = number<uint32_t>();
    const auto n = number<uint64_t>();
    require(n <= left() / 8, "a length");
    require(form == type_of("full") ? n == nlist
                                    : form == type_of("sprs") && n % 2 == 0,
            "list sizes");
    std::vector<uint64_t> sizes(n);
    read(sizes.data(), 8 * n);
    const size_t step = form == type_of("full") ? 1 : 2;
    for (size_t i = step - 1; i < n; i += step) {
        require(step == 1 || sizes[i - 1] < nlist, "list sizes");
        require(sizes[i] <= left() / (code_size + 8), "list sizes");
        skip(sizes[i] * (code_size + 8));
    }
}

void Walk::block_lists(uint64_t nlist) {
    skip(8); // code_size
    const auto per_block = number<uint64_t>();
    const auto block_size = number<uint64_t>();
    require(per_block > 0 && per_block < kMostCodeSize && block_size > 0 &&
                    block_size < kMostCodeSize,
            "blocks of the lists");
    for (uint64_t i = 0; i < nlist; i++) {
        const uint64_t ids = array(8), bytes = array(1);
        require(bytes % block_size == 0 &&
                        bytes / block_size == (ids + per_block - 1) / per_block,
                "blocks of the lists");
    }
}

bool Walk::lists(uint64_t nlist) {
    const auto type = number<uint32_t>();
    switch (type) {
        case type_of("il00"):
            return true;
        case type_of("ilar"):
        case type_of("ilbl"):
        case type_of("ilod"):
            require(number<uint64_t>() == nlist, "number of lists");
            break;
        default:
            return foreign(type);
    }
    if (type == type_of("ilar")) {
        plain_lists(nlist);
    } else if (type == type_of("ilbl")) {
        block_lists(nlist);
    } else {
        skip(8);                              // code_size
        require(array(24) == nlist, "lists"); // size, capacity, offset
        array(16);                            // free slots
        array(1);                             // file name
        skip(8);                              // its size
    }
    return known;
}

Walk::Header Walk::ivf(uint32_t type, int depth) {
    const Header head = header();
    const auto nlist = number<uint64_t>();
    require(nlist > 0 && nlist < kMostLists, "nlist");
    skip(8); // nprobe
    const Header quantizer = index(depth + 1);
    if (!known) {
        return head;
    }
    require(quantizer.d == head.d, "d of the quantizer");
    const auto map = number<uint8_t>();
    array(8); // of a direct map of type Array
    if (map == 2) {
        array(16); // Hashtable
    }
    if (type == type_of("IwPQ")) {
        skip(1 + 8); // by_residual, code_size
        product_quantizer(head.d, 16);
    } else if (type == type_of("IwPf")) {
        skip(1 + 8);
        const auto bbs = number<int32_t>();
        require(bbs > 0 && bbs % 32 == 0, "blocks of the fast scan");
        const auto M2 = number<uint64_t>();
        skip(4 + 8); // implem, qbs2
        const uint64_t M = product_quantizer(head.d, 4);
        require(M2 == M + M % 2, "M2 of the fast scan");
    } else if (type == type_of("IwSq")) {
        const auto kind = number<int32_t>();
        skip(4 + 4 + 8 + 8); // rangestat and its argument, d, code_size
        array(4);            // trained
        if (kind < 0 || kind >= 64) {
            require(false, "type of the scalar quantizer");
        }
        skip(8 + 1); // code_size, by_residual
    }
    lists(nlist);
    return head;
}

Walk::Header Walk::index(int depth) {
    require(depth < kMostNested, "nesting");
    const auto type = number<uint32_t>();
    switch (type) {
        case type_of("IxPT"): {
            const Header head = header();
            const auto n = number<int32_t>();
            for (int32_t i = 0; i < n && known; i++) {
                transform(depth);
            }
            if (known) {
                index(depth + 1);
            }
            return head;
        }
        case type_of("IxMp"):
        case type_of("IxM2"): {
            const Header head = header();
            index(depth + 1);
            require(!known || array(8) == head.ntotal, "size of the IDMap");
            return head;
        }
        case type_of("IxRF"): {
            const Header head = header();
            index(depth + 1);
            if (known) {
                const bool was_strict = strict;
                strict = false; // any index of FAISS's can refine
                index(depth + 1);
                strict = was_strict;
            }
            if (known) {
                skip(4); // k_factor
            }
            return head;
        }
        case type_of("IxSQ"): {
            const Header head = header();
            skip(4 + 4 + 4 + 8 + 8);
            array(4); // trained
            array(1); // codes
            return head;
        }
        case type_of("IxF2"):
        case type_of("IxFI"):
        case type_of("IxFl"):
            return flat();
        case type_of("IHNf"):
            return graph(depth);
        case type_of("IwFl"):
        case type_of("IwPQ"):
        case type_of("IwSq"):
        case type_of("IwPf"):
            return ivf(type, depth);
        default:
            foreign(type);
            return {};
    }
}

} // namespace

void check_layout(
        faiss::IOReader* reader,
        const Seekable& place,
        uint64_t length,
        bool strict) {
    Walk(reader, place, length, strict).index(0);
}

} // namespace faiss_ext
