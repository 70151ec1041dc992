#include "VectorSource.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "ExpectInvalid.h"
#include "TemporaryFolder.h"

using gmm::ElementType;
using gmm::file_source;
using gmm::Rows;
using gmm::VectorSource;

namespace {

struct VectorSourceTest : testing::Test {
    TemporaryFolder folder;

    std::string write(const std::string& name, const std::string& bytes) {
        const std::string path = folder.file(name);
        std::ofstream(path, std::ios::binary) << bytes;
        return path;
    }
};

template <class T>
std::string bytes_of(std::initializer_list<T> values) {
    return std::string(
            reinterpret_cast<const char*>(values.begin()),
            values.size() * sizeof(T));
}

std::string bin_header(uint32_t n, uint32_t d) {
    return bytes_of<uint32_t>({n, d});
}

std::string npy(const std::string& dictionary, const std::string& body) {
    const std::string header = dictionary + "\n";
    return std::string("\x93NUMPY\x01\x00", 8) +
            bytes_of<uint16_t>({uint16_t(header.size())}) + header + body;
}

std::vector<float> all(const VectorSource& source) {
    std::vector<std::byte> scratch;
    std::vector<float> out(source.n * source.d);
    source.rows(0, source.n, scratch).to_float(out.data());
    return out;
}

const std::vector<float> kExpected = {1, 2, 3, 4, 5, 250};
const std::string kFloats = bytes_of<float>({1, 2, 3, 4, 5, 250});
const std::string kBytes = bytes_of<uint8_t>({1, 2, 3, 4, 5, 250});
const std::string kHalves =
        bytes_of<uint16_t>({0x3c00, 0x4000, 0x4200, 0x4400, 0x4500, 0x5bd0});

void expect_two_by_three(const VectorSource& source, ElementType type) {
    EXPECT_EQ(source.n, 2u);
    EXPECT_EQ(source.d, 3u);
    EXPECT_EQ(source.type, type);
    EXPECT_EQ(all(source), kExpected);
    std::vector<std::byte> scratch;
    std::vector<float> last(3);
    source.rows(1, 1, scratch).to_float(last.data());
    EXPECT_EQ(last, (std::vector<float>{4, 5, 250}));
    EXPECT_EQ(source.rows(2, 0, scratch).n, 0u);
    EXPECT_INVALID(source.rows(1, 2, scratch), "begin = 1, count = 2");
    EXPECT_INVALID(source.rows(3, 0, scratch), "begin = 3");
    EXPECT_INVALID(source.rows(1, size_t(-1), scratch), "begin = 1");
}

} // namespace

TEST_F(VectorSourceTest, Memory) {
    for (const auto& [type, bytes] :
         {std::pair(ElementType::f32, kFloats),
          std::pair(ElementType::f16, kHalves),
          std::pair(ElementType::u8, kBytes)}) {
        expect_two_by_three(
                *gmm::memory_source(bytes.data(), 2, 3, type), type);
    }
}

TEST_F(VectorSourceTest, Callback) {
    const auto source = gmm::callback_source(
            2, 3, ElementType::u8, [](size_t begin, size_t count, void* out) {
                std::memcpy(out, kBytes.data() + 3 * begin, 3 * count);
            });
    expect_two_by_three(*source, ElementType::u8);
}

TEST_F(VectorSourceTest, CallbackExceptionsReachTheCaller) {
    const auto source = gmm::callback_source(
            2, 3, ElementType::u8, [](size_t, size_t, void*) {
                throw std::runtime_error("no disk");
            });
    std::vector<std::byte> scratch;
    EXPECT_THROW(source->rows(0, 1, scratch), std::runtime_error);
}

TEST_F(VectorSourceTest, Bin) {
    expect_two_by_three(
            *file_source(write("a.fbin", bin_header(2, 3) + kFloats)),
            ElementType::f32);
    expect_two_by_three(
            *file_source(write("a.u8bin", bin_header(2, 3) + kBytes)),
            ElementType::u8);
}

TEST_F(VectorSourceTest, Vecs) {
    const std::string d = bytes_of<uint32_t>({3});
    expect_two_by_three(
            *file_source(
                    write("a.fvecs",
                          d + kFloats.substr(0, 12) + d + kFloats.substr(12))),
            ElementType::f32);
    expect_two_by_three(
            *file_source(write(
                    "a.bvecs", d + kBytes.substr(0, 3) + d + kBytes.substr(3))),
            ElementType::u8);
}

TEST_F(VectorSourceTest, Npy) {
    const std::string rest = ", 'fortran_order': False, 'shape': (2, 3), }";
    expect_two_by_three(
            *file_source(
                    write("a.npy", npy("{'descr': '<f4'" + rest, kFloats))),
            ElementType::f32);
    expect_two_by_three(
            *file_source(
                    write("b.npy", npy("{'descr': '<f2'" + rest, kHalves))),
            ElementType::f16);
    expect_two_by_three(
            *file_source(write("c.npy", npy("{'descr': '|u1'" + rest, kBytes))),
            ElementType::u8);
    std::string version2 = npy("{'descr': '|u1'" + rest, kBytes);
    version2[6] = 2;
    version2.insert(10, 2, '\0');
    expect_two_by_three(
            *file_source(write("d.npy", version2)), ElementType::u8);
}

TEST_F(VectorSourceTest, RejectsFilesThatAreNotWhatTheySay) {
    const std::string rest = ", 'fortran_order': False, 'shape': (2, 3), }";
    const std::string d = bytes_of<uint32_t>({3});
    struct Case {
        const char* name;
        std::string bytes;
        const char* expected;
    };
    const Case cases[] = {
            {"empty.fbin", "", "header of 8 bytes"},
            {"short.fbin", bin_header(2, 3).substr(0, 7), "header of 8 bytes"},
            {"short2.fbin",
             bin_header(2, 3) + kFloats.substr(1),
             "23 bytes follow"},
            {"long.fbin", bin_header(2, 3) + kFloats + "x", "25 bytes follow"},
            {"none.u8bin", bin_header(0, 3), "n = 0"},
            {"flat.u8bin", bin_header(3, 0), "d = 0"},
            {"huge.fbin",
             bin_header(0xffffffffu, 0xffffffffu) + kFloats,
             "d = 4294967295"},
            {"overflow.fbin",
             bin_header(0xffffffffu, 1u << 24) + kFloats,
             "truncated or foreign"},
            {"empty.fvecs", "", "holds no vector"},
            {"zero.fvecs", bytes_of<uint32_t>({0, 0}), "dimension 0"},
            {"huge.fvecs", bytes_of<uint32_t>({0x7fffffff}), "dimension"},
            {"short.fvecs", d + kFloats.substr(0, 11), "no multiple"},
            {"short.bvecs", d + kBytes.substr(0, 3) + d, "no multiple"},
            {"magic.npy", "NUMPY-------------", "magic"},
            {"tiny.npy", "\x93NUM", "magic"},
            {"version.npy",
             std::string("\x93NUMPY\x09\x00\x01\x00{}", 12),
             "damaged"},
            {"header.npy",
             std::string("\x93NUMPY\x01\x00\xff\xff{}", 12),
             "damaged"},
            {"type.npy", npy("{'descr': '<f8'" + rest, kFloats), "'<f8'"},
            {"big.npy", npy("{'descr': '>f4'" + rest, kFloats), "'>f4'"},
            {"order.npy",
             npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }",
                 kFloats),
             "Fortran"},
            {"flat.npy",
             npy("{'descr': '<f4', 'fortran_order': False, 'shape': (6,), }",
                 kFloats),
             "two dimensions"},
            {"cube.npy",
             npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2, 3), "
                 "}",
                 kFloats),
             "two dimensions"},
            {"noshape.npy",
             npy("{'descr': '<f4', 'fortran_order': False, }", kFloats),
             "no 'shape'"},
            {"short.npy",
             npy("{'descr': '<f4'" + rest, kFloats.substr(4)),
             "20 bytes follow"},
            {"foreign.txt", "hello", "unknown ending"},
    };
    for (const Case& c : cases) {
        SCOPED_TRACE(c.name);
        const std::string path = write(c.name, c.bytes);
        EXPECT_INVALID(file_source(path), c.expected);
        EXPECT_INVALID(file_source(path), c.name);
    }
    EXPECT_INVALID(file_source(folder.file("absent.fbin")), "absent.fbin");
    EXPECT_INVALID(file_source(folder.path), "not a regular file");
}

TEST_F(VectorSourceTest, AFileThatBecomesShorter) {
    constexpr size_t n = 100000;
    const std::string body(n * 4 * sizeof(float), '\0');
    const std::string path = write("a.fbin", bin_header(n, 4) + body);
    const auto source = file_source(path);
    EXPECT_EQ(all(*source), std::vector<float>(n * 4));
    std::filesystem::resize_file(path, 4096);
    std::vector<std::byte> scratch;
    EXPECT_EQ(source->rows(0, 200, scratch).n, 200u);
    EXPECT_INVALID(all(*source), "become shorter");
    EXPECT_INVALID(source->rows(n - 1, 1, scratch), path);
    EXPECT_EQ(source->rows(0, 200, scratch).n, 200u);
}

TEST_F(VectorSourceTest, PipesAndDevicesAreNoFiles) {
    const std::string pipe = folder.file("pipe.fbin");
    ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
    EXPECT_INVALID(file_source(pipe), "not a regular file");
    const std::string device = folder.file("device.npy");
    std::filesystem::create_symlink("/dev/zero", device);
    EXPECT_INVALID(file_source(device), "not a regular file");
}

TEST_F(VectorSourceTest, RejectsAVectorOfAnotherDimensionWhenItIsRead) {
    const std::string bytes = bytes_of<uint32_t>({2, 0, 0, 9, 0, 0});
    const auto source = file_source(write("a.fvecs", bytes));
    std::vector<std::byte> scratch;
    EXPECT_NO_THROW(source->rows(0, 1, scratch));
    EXPECT_INVALID(source->rows(0, 2, scratch), "vector 1 has dimension 9");
}

TEST_F(VectorSourceTest, EveryHalfIsConvertedExactly) {
    std::vector<uint16_t> halves(65536);
    for (size_t i = 0; i < halves.size(); i++) {
        halves[i] = uint16_t(i);
    }
    const auto source =
            gmm::memory_source(halves.data(), 256, 256, ElementType::f16);
    const std::vector<float> found = all(*source);
    for (size_t i = 0; i < halves.size(); i++) {
        const int exponent = i >> 10 & 31;
        const float mantissa = float(i & 1023);
        float expected = exponent == 0
                ? std::ldexp(mantissa, -24)
                : std::ldexp(1024 + mantissa, exponent - 25);
        if (exponent == 31) {
            expected = mantissa == 0 ? std::numeric_limits<float>::infinity()
                                     : std::nanf("");
        }
        if (std::isnan(expected)) {
            EXPECT_TRUE(std::isnan(found[i])) << i;
        } else {
            EXPECT_EQ(found[i], i >> 15 ? -expected : expected) << i;
        }
    }
}

TEST_F(VectorSourceTest, GatherTakesRowsInTheOrderAsked) {
    const auto source =
            gmm::memory_source(kBytes.data(), 3, 2, ElementType::u8);
    std::vector<float> out(6);
    gather(*source, {2, 0, 2}, out.data());
    EXPECT_EQ(out, (std::vector<float>{5, 250, 1, 2, 5, 250}));
    EXPECT_INVALID(gather(*source, {1, 3}, out.data()), "ids[1] = 3");
}

TEST_F(VectorSourceTest, SourcesWithoutVectorsAreWrongInput) {
    const float x = 0;
    EXPECT_INVALID(gmm::memory_source(&x, 0, 1), "n = 0");
    EXPECT_INVALID(gmm::memory_source(&x, 1, 0), "d = 0");
    EXPECT_INVALID(gmm::memory_source(nullptr, 1, 1), "data = nullptr");
    const gmm::FillRows fill = [](size_t, size_t, void*) {};
    EXPECT_INVALID(gmm::callback_source(0, 1, ElementType::u8, fill), "n = 0");
    EXPECT_INVALID(gmm::callback_source(1, 0, ElementType::u8, fill), "d = 0");
    EXPECT_INVALID(
            gmm::callback_source(1, 1, ElementType::u8, nullptr), "fill");
}

TEST_F(VectorSourceTest, ASampleIsSpreadEvenly) {
    std::vector<uint8_t> values(5000);
    for (size_t i = 0; i < values.size(); i++) {
        values[i] = uint8_t(i / 25);
    }
    const auto whole =
            gmm::memory_source(values.data(), 2500, 2, ElementType::u8);
    for (size_t count : {1, 7, 200, 1300, 2499, 2500}) {
        const auto sample = gmm::sample_source(*whole, count, 3);
        const auto other = gmm::sample_source(*whole, count, 4);
        ASSERT_EQ(sample->n, count);
        ASSERT_EQ(sample->type, ElementType::u8);
        std::vector<std::byte> scratch;
        std::vector<float> x(count * 2);
        sample->rows(0, count, scratch).to_float(x.data());
        size_t moved = 0;
        for (size_t i = 0; i < count; i++) {
            const size_t row = sample->given_row(i);
            ASSERT_GE(row + 1, i * 2500 / count);
            ASSERT_LE(row, (i + 1) * 2500 / count);
            ASSERT_TRUE(i == 0 || row > sample->given_row(i - 1));
            ASSERT_EQ(x[2 * i], float(2 * row / 25));
            std::vector<float> one(2);
            sample->rows(i, 1, scratch).to_float(one.data());
            ASSERT_EQ(one[0], x[2 * i]);
            moved += other->given_row(i) != row;
        }
        EXPECT_TRUE(count > 1300 || moved > 0);
        EXPECT_INVALID(sample->rows(count, 1, scratch), "begin + count");
    }
    EXPECT_INVALID(gmm::sample_source(*whole, 2501, 0), "count");
    EXPECT_INVALID(gmm::sample_source(*whole, 0, 0), "count");
}

TEST_F(VectorSourceTest, AMappedSourceComputesItsRows) {
    const std::vector<float> values = {1, 2, 3, 4, 5, 6};
    const auto whole = gmm::memory_source(values.data(), 3, 2);
    const auto sums = gmm::mapped_source(
            *whole, 1, [](size_t n, const float* x, float* out) {
                for (size_t i = 0; i < n; i++) {
                    out[i] = x[2 * i] + x[2 * i + 1];
                }
            });
    std::vector<std::byte> scratch;
    std::vector<float> x(2);
    sums->rows(1, 2, scratch).to_float(x.data());
    EXPECT_EQ(x, (std::vector<float>{7, 11}));
    EXPECT_EQ(sums->d, 1u);
    EXPECT_INVALID(gmm::mapped_source(*whole, 0, {}), "d = 0");
    EXPECT_INVALID(gmm::mapped_source(*whole, 1, {}), "map is empty");
}

TEST_F(VectorSourceTest, ElementSizes) {
    EXPECT_EQ(gmm::element_size(ElementType::f32), 4u);
    EXPECT_EQ(gmm::element_size(ElementType::f16), 2u);
    EXPECT_EQ(gmm::element_size(ElementType::u8), 1u);
}
