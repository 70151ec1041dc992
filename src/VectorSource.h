#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace gmm {

enum class ElementType { f32, f16, u8 };

/// Bytes of one element.
size_t element_size(ElementType type);

/// Rows of vectors in memory that somebody else owns.
struct Rows {
    const void* data = nullptr;
    ElementType type = ElementType::f32;
    size_t n = 0;
    size_t d = 0;
    size_t stride = 0; ///< bytes from one row to the next

    /// Writes the rows as floats, size n * d.
    void to_float(float* out) const;
};

/** A set of vectors that is read in blocks and need not fit in memory.
 *
 * Any range of rows can be asked for, in any order and from several threads.
 */
struct VectorSource {
    size_t n = 0; ///< number of vectors
    size_t d = 0; ///< dimension
    ElementType type = ElementType::f32;

    /** Rows [begin, begin + count), begin + count <= n.
     *
     * @param scratch  holds the rows where they cannot be pointed at in place;
     *                 the view is valid until scratch is used again
     */
    virtual Rows
    rows(size_t begin, size_t count, std::vector<std::byte>& scratch) const = 0;

    /// The number of row i in the vectors that the user gave: samples have
    /// other numbers. For error messages.
    virtual size_t given_row(size_t i) const {
        return i;
    }

    virtual ~VectorSource() = default;

protected:
    /// For rows(): throws InvalidArgument unless begin + count <= n.
    void check_range(size_t begin, size_t count) const;
};

/// Vectors in memory, n * d contiguous elements that must outlive the source.
std::unique_ptr<VectorSource> memory_source(
        const void* data,
        size_t n,
        size_t d,
        ElementType type = ElementType::f32);

/** A file, of which only the rows asked for are read: .fvecs, .bvecs, .fbin,
 * .u8bin or .npy (float32, float16 or uint8, C order, two dimensions), told
 * apart by its name's ending.
 *
 * Throws InvalidArgument naming the file if it cannot be opened, is foreign,
 * or is not as long as its header says; rows() does if it cannot be read, or
 * has become shorter since. */
std::unique_ptr<VectorSource> file_source(const std::string& path);

/// Fills out with rows [begin, begin + count), count * d elements; called from
/// one thread at a time.
using FillRows = std::function<void(size_t begin, size_t count, void* out)>;

/// Vectors that a function produces on demand.
std::unique_ptr<VectorSource> callback_source(
        size_t n, size_t d, ElementType type, FillRows fill);

/** A sample of the rows of another source, in their order and spread evenly: of
 * every n / count consecutive rows one, chosen by the seed. Takes no memory.
 *
 * @param source  must outlive the sample
 * @param count   rows of the sample, 1 to source.n
 */
std::unique_ptr<VectorSource> sample_source(
        const VectorSource& source, size_t count, uint64_t seed);

/// Computes n rows from n rows of a source as floats; called from several
/// threads at a time.
using MapRows = std::function<void(size_t n, const float* x, float* out)>;

/// The rows that a function computes from those of another source, f32 of
/// dimension d. The other source must outlive it.
std::unique_ptr<VectorSource> mapped_source(
        const VectorSource& source, size_t d, MapRows map);

/// Copies the rows with the given numbers as floats; out has size ids.size() *
/// d. Throws InvalidArgument for a number that is not below source.n.
void gather(
        const VectorSource& source, const std::vector<size_t>& ids, float* out);

} // namespace gmm
