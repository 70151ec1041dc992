#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

/** What a file looks like, and every number in it that has a meaning.
 *
 *   stock part   what faiss::write_index writes, but for two 8-byte words of
 *                the outermost header that FAISS sets to kFaissWord and ignores
 *                when it reads: kStamp and the length of the stock part
 *   trailer      TrailerHead, payload (trailer.cpp), checksum of both
 *
 * Before both stands kCodesAlone in the file of an index that holds codes and
 * no vectors, by which FAISS refuses it: its stock part is only a shell
 * (StockShell.h), and the ids of its lists are in the payload.
 *
 * The stamp tells a file that has lost its trailer from one that never had
 * one, and where the trailer is before anything of the file is believed.
 *
 * Integers and enums of the payload have eight bytes, bools one, floats four;
 * arrays their length first. All little-endian, as FAISS writes.
 *
 * A new version: kVersion goes up by one, and what it changed is listed here;
 * trailer.cpp asks FieldReader::version where the versions differ. A file of
 * each that was ever in use is in tests/fixtures.
 *
 *   2   the first that was in use: cells with tails, sketches of 12 terms
 *   3   cells without tails, codes in blocks, calibrations of codes
 *   4   the blocks of all lists one after the other, without lengths, behind
 *       zeros that align them
 *   5   Calibration::farthest
 *   6   checksums of the ids of lists that are in a file of their own
 *   7   Calibration::Point::reach
 */
namespace faiss_ext {

constexpr uint32_t kVersion = 7;
constexpr uint32_t kOldestVersion = 2; ///< that is read

/// Blocks of codes begin at a multiple of it, counted from the first byte, so
/// that they can be used where they are mapped.
constexpr size_t kBlocksAlignment = 64;

constexpr uint64_t kStamp = 0x5254'4d4d'472b'5846; // "FX+GMMTR"
constexpr uint64_t kFaissWord = 1 << 20;
/// fourcc, d, ntotal: what stands before the two words.
constexpr size_t kStampBegin = 4 + 4 + 8;
constexpr size_t kStampEnd = kStampBegin + 16;

constexpr uint32_t kCodesAlone = 0x634d'4d47; // "GMMc"

struct TrailerHead {
    uint32_t magic = kMagic;
    uint32_t version = kVersion;
    uint64_t stock_length = 0;
    uint64_t stock_checksum = 0;
    uint64_t payload_length = 0;

    static constexpr uint32_t kMagic = 0x744d'4d47; // "GMMt"
};
static_assert(sizeof(TrailerHead) == 32);
static_assert(std::endian::native == std::endian::little);

/// The payload's first number.
enum class PayloadKind : uint32_t {
    ivf_gmm = 1,   ///< an IndexIVFGMM
    quantizer = 2, ///< an IndexGMM, alone or under a stock IVF index
    codes = 3,     ///< an IndexIVFRaBitQGMM
};

} // namespace faiss_ext
