// Codes about the means of cells: what they estimate, and how far off that may
// be, in double.
#include "faiss_ext/CellCodes.h"

#include <cmath>
#include <cstring>

#include "IvfTestTools.h"
#include "faiss_ext/coarse/coarse.h"

namespace faiss_ext {
namespace {

constexpr size_t kLists = 32;

/// A record taken apart.
struct Decoded {
    std::vector<double> o; ///< levels less their middle, size d
    float a, b;
};

Decoded decoded(const CodeShape& shape, const std::vector<uint8_t>& record) {
    Decoded out;
    const size_t dims = 4 / shape.bits;
    for (size_t j = 0; j < shape.d; j++) {
        const size_t column = j / dims;
        const uint8_t byte = record[column / 4 * 2 + (column & 1)];
        const int nibble = column & 2 ? byte >> 4 : byte & 15;
        const int level =
                nibble >> (j % dims * shape.bits) & ((1 << shape.bits) - 1);
        out.o.push_back(level - 0.5 * ((1 << shape.bits) - 1));
    }
    memcpy(&out.a, &record[shape.groups * 2], sizeof(float));
    memcpy(&out.b, &record[shape.groups * 2 + 4], sizeof(float));
    return out;
}

double norm2(const float* x, size_t d) {
    const std::vector<float> zero(d, 0.0f);
    return true_distance(faiss::METRIC_L2, x, zero.data(), d);
}

Vectors normal_vectors(size_t n, size_t d, uint32_t seed) {
    std::mt19937 rng(seed);
    std::normal_distribution<float> value;
    Vectors out{n, d, std::vector<float>(n * d)};
    for (float& v : out.x) {
        v = value(rng);
    }
    return out;
}

/// Patches from the second half of the file are what the first is asked for.
Vectors patch_vectors(size_t begin, size_t end) {
    RealData data("patch_sample_base.fbin", end, 96);
    const Vectors all{data.n, data.d, std::move(data.x)};
    return rows_of(all, begin, end);
}

/// Vectors, and queries that are none of them.
struct Data {
    const char* name;
    Vectors base, queries;
};

std::vector<Data> all_data() {
    std::vector<Data> out;
    out.push_back({"sift", sift_base(8000), sift_queries(40)});
    out.push_back(
            {"patches", patch_vectors(0, 2900), patch_vectors(2900, 2940)});
    for (size_t d : {3, 16, 50, 100, 384, 576, 1536}) {
        const Vectors x = normal_vectors(3040, d, 3);
        out.push_back({"normal", rows_of(x, 0, 3000), rows_of(x, 3000, 3040)});
    }
    return out;
}

/// An error of estimates, over the standard deviation that codes claim.
struct Errors {
    std::vector<double> z;
    double bias() const {
        double sum = 0;
        for (double v : z) {
            sum += v;
        }
        return sum / z.size();
    }
    double deviation() const {
        double sum = 0;
        for (double v : z) {
            sum += v * v;
        }
        return std::sqrt(sum / z.size());
    }
    /// How often the truth is below the bound.
    double violations(double deviations) const {
        return std::count_if(
                       z.begin(),
                       z.end(),
                       [&](double v) { return v > deviations; }) /
                double(z.size());
    }
};

/** Of every query and every step-th entry, and of the 10 nearest of each query.
 */
void measure(
        const IndexIVFFlatGMM& index,
        const Vectors& q,
        size_t step,
        Errors& any,
        Errors& nearest) {
    const PairCells& cells = index.cells;
    const CellCodes& codes = cells.codes;
    const size_t d = index.d;
    const bool ip = codes.similarity;
    const std::vector<float> means = index.mixture().means;
    faiss::SearchParametersIVF all;
    all.nprobe = index.nlist;
    const Found truth = find(index, q, 10, &all);
    std::vector<uint8_t> record(codes.shape.entry_bytes());
    std::vector<float> rotated(d), x(d);
    for (size_t i = 0; i < q.n; i++) {
        codes.rotation.apply(
                1, q.row(i), codes.centre.data(), 1, rotated.data());
        const std::set<idx_t> near(&truth.ids[i * 10], &truth.ids[i * 10] + 10);
        for (size_t list = 0; list < index.nlist; list++) {
            for (size_t l = 0; l < cells.cells_per_list; l++) {
                std::vector<double> m(d);
                double qm = 0, score = 0;
                for (size_t j = 0; j < d; j++) {
                    const double a = cells.a[list];
                    m[j] = (1 - a) * means[list * d + j] +
                            a * means[cells.partners(list)[l] * d + j];
                    qm += (q.row(i)[j] - m[j]) * (q.row(i)[j] - m[j]);
                    score -= q.row(i)[j] * m[j];
                }
                const auto [begin, end] = cells.range(list, l);
                for (size_t e = begin; e < end; e++) {
                    const idx_t id = index.invlists->get_single_id(list, e);
                    if (id % idx_t(step) != 0 && !near.count(id)) {
                        continue;
                    }
                    codes.get(list, e, record.data());
                    const Decoded code = decoded(codes.shape, record);
                    double product = 0;
                    for (size_t j = 0; j < d; j++) {
                        product += rotated[j] * code.o[j];
                    }
                    index.reconstruct_from_offset(list, e, x.data());
                    const double truth =
                            (ip ? -1 : 1) *
                            true_distance(
                                    index.metric_type, q.row(i), x.data(), d);
                    const double estimate =
                            (ip ? code.a * score : code.a + qm) +
                            code.b * product;
                    const double scale = std::abs(code.b) * codes.error *
                            std::sqrt(ip ? norm2(q.row(i), d) : qm);
                    if (scale == 0) {
                        EXPECT_NEAR(estimate, truth, 1e-4 * std::abs(truth));
                        continue;
                    }
                    const double z = (estimate - truth) / scale;
                    if (id % idx_t(step) == 0) {
                        any.z.push_back(z);
                    }
                    if (near.count(id)) {
                        nearest.z.push_back(z);
                    }
                }
            }
        }
    }
}

/// Of a normal value: how often it is so many standard deviations above.
double normal_tail(double deviations) {
    return 0.5 * std::erfc(deviations / std::sqrt(2.0));
}

TEST(CellCodes, EstimatesAreUnbiasedAndAsFarOffAsTheySay) {
    for (const Data& data : all_data()) {
        for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
            for (int bits : {1, 2, 4}) {
                SCOPED_TRACE(
                        testing::Message()
                        << data.name << ", d " << data.base.d << ", metric "
                        << int(metric) << ", bits " << bits);
                auto index = trained(data.base, kLists, metric);
                index->code_bits = bits;
                index->add(data.base.n, data.base.x.data());
                ASSERT_EQ(index->cells.codes.shape.bits, bits);
                Errors any, nearest;
                measure(*index, data.queries, 5, any, nearest);
                ASSERT_GT(any.z.size(), 20000u);
                // Errors of one entry are not independent of each other, since
                // queries lie in like directions: more than 1 / sqrt(n) is
                // allowed.
                EXPECT_NEAR(any.bias(), 0, 0.06);
                // Along the residual itself there is no error.
                EXPECT_NEAR(
                        any.deviation(),
                        std::sqrt(1 - 1.0 / double(data.base.d)),
                        0.15);
                ASSERT_GE(nearest.z.size(), data.queries.n * 10);
                // Of the query's direction it knows a little there.
                EXPECT_NEAR(nearest.bias(), 0, 0.25);
                EXPECT_LT(nearest.deviation(), 1.15);
                for (double s : {1.0, 2.0, 3.0}) {
                    const double limit = 1.25 * normal_tail(s) + 0.003;
                    EXPECT_LE(any.violations(s), limit) << s;
                    EXPECT_LE(nearest.violations(s), limit + 0.01) << s;
                }
            }
        }
    }
}

TEST(CellCodes, MoreBitsAreNearer) {
    const Data data = {"", sift_base(4000), sift_queries(20)};
    double before = HUGE_VAL;
    for (int bits : {1, 2, 4}) {
        auto index = trained(data.base, kLists);
        index->code_bits = bits;
        index->add(data.base.n, data.base.x.data());
        const CellCodes& codes = index->cells.codes;
        std::vector<uint8_t> record(codes.shape.entry_bytes());
        double deviation = 0; // of an estimate, over |q - m|
        for (size_t e = 0; e < index->cells.list_size(0); e++) {
            codes.get(0, e, record.data());
            deviation += std::abs(decoded(codes.shape, record).b) * codes.error;
        }
        EXPECT_LT(deviation, 0.7 * before) << bits;
        before = deviation;
    }
}

TEST(CellCodes, TermsAreTheHeadersFormula) {
    const Vectors x = sift_base(2000);
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        const bool ip = metric == faiss::METRIC_INNER_PRODUCT;
        auto index = filled(x, 16, metric);
        const PairCells& cells = index->cells;
        const CellCodes& codes = cells.codes;
        const size_t d = x.d;
        EXPECT_EQ(codes.similarity, ip);
        const std::vector<float> means = index->mixture().means;
        std::vector<float> centre(d);
        for (size_t j = 0; j < d && !ip; j++) {
            for (size_t i = 0; i < 16; i++) {
                centre[j] += means[i * d + j] / 16;
            }
            ASSERT_NEAR(codes.centre[j], centre[j], 1e-3);
        }
        std::vector<float> rotated(16 * d);
        codes.rotation.apply(
                16, means.data(), codes.centre.data(), 1, rotated.data());
        EXPECT_EQ(codes.rotated_means, rotated);
        for (size_t i = 0; i < 16; i++) {
            const double size = norm2(&rotated[i * d], d);
            EXPECT_NEAR(codes.mean_norms[i], ip ? 0 : size, 1e-5 * size);
        }
        std::vector<uint8_t> record(codes.shape.entry_bytes());
        for (size_t list = 0; list < 16; list++) {
            for (size_t l = 0; l < cells.cells_per_list; l++) {
                const auto [begin, end] = cells.range(list, l);
                for (size_t e = begin; e < end; e += 5) {
                    std::vector<float> v(d), u(d);
                    index->reconstruct_from_offset(list, e, v.data());
                    const double length = std::sqrt(norm2(v.data(), d));
                    for (float& value : v) {
                        value /= ip ? length : 1;
                    }
                    codes.rotation.apply(
                            1, v.data(), codes.centre.data(), 1, u.data());
                    codes.get(list, e, record.data());
                    const Decoded code = decoded(codes.shape, record);
                    double rr = 0, ro = 0, mo = 0;
                    for (size_t j = 0; j < d; j++) {
                        const double a = cells.a[list];
                        const double m = (1 - a) * rotated[list * d + j] +
                                a * rotated[cells.partners(list)[l] * d + j];
                        const double r = u[j] - m;
                        rr += r * r;
                        ro += r * code.o[j];
                        mo += m * code.o[j];
                    }
                    const double s = ro > 0 ? rr / ro : 0;
                    const double expected_a = ip ? length : rr + 2 * s * mo;
                    const double expected_b = ip ? -length * s : -2 * s;
                    const double size = rr + std::abs(2 * s * mo);
                    ASSERT_NEAR(
                            code.a, expected_a, 2e-4 * (ip ? length : size));
                    ASSERT_NEAR(
                            code.b, expected_b, 2e-4 * std::abs(expected_b));
                }
            }
        }
    }
}

CellCodes codes_of(size_t d, int bits, bool similarity = false) {
    CellCodes codes;
    const Vectors means = normal_vectors(4, d, 1);
    codes.init(4, d, bits, means.x.data(), similarity);
    return codes;
}

TEST(CellCodes, RowsAndNormsAreThoseAskedFor) {
    for (bool similarity : {false, true}) {
        const size_t d = 40;
        const CellCodes codes = codes_of(d, 2, similarity);
        const Vectors x = normal_vectors(9, d, 2);
        const int32_t partners[] = {1, 2, 3};
        const std::vector<uint32_t> rows = {8, 0, 3};
        const std::vector<uint16_t> cell = {2, 0, 1};
        const std::vector<float> norms = {4, 0.5f, 1};
        const size_t bytes = codes.shape.entry_bytes();
        std::vector<uint8_t> out(3 * bytes), one(bytes);
        const double sum = codes.encode(
                0,
                0.3f,
                partners,
                3,
                x.x.data(),
                rows.data(),
                norms.data(),
                cell.data(),
                out.data());
        double sum_of_each = 0;
        for (size_t i = 0; i < 3; i++) {
            sum_of_each += codes.encode(
                    0,
                    0.3f,
                    partners,
                    1,
                    x.row(rows[i]),
                    nullptr,
                    nullptr,
                    &cell[i],
                    one.data());
            if (similarity) { // A and B are of the direction, times the norm
                float terms[2];
                memcpy(terms, &one[bytes - 8], 8);
                terms[0] *= norms[i];
                terms[1] *= norms[i];
                memcpy(&one[bytes - 8], terms, 8);
            }
            EXPECT_TRUE(std::equal(one.begin(), one.end(), &out[i * bytes]))
                    << i;
        }
        EXPECT_DOUBLE_EQ(sum, sum_of_each);
        EXPECT_GT(sum, 0);
    }
}

TEST(CellCodes, AVectorAtItsCellsMeanIsKnownExactly) {
    const size_t d = 24;
    Vectors means{4, d, std::vector<float>(4 * d)};
    for (size_t i = 0; i < means.x.size(); i++) {
        means.x[i] = float(i % 5);
    }
    CellCodes codes;
    codes.init(4, d, 2, means.x.data(), false);
    const int32_t partner = 2;
    const uint16_t cell = 0;
    std::vector<uint8_t> record(codes.shape.entry_bytes());
    codes.encode(
            1,
            0,
            &partner,
            1,
            means.row(1),
            nullptr,
            nullptr,
            &cell,
            record.data());
    const Decoded code = decoded(codes.shape, record);
    EXPECT_NEAR(code.a, 0, 1e-6);
    EXPECT_NEAR(code.b, 0, 1e-6);
}

TEST(CellCodes, OfOneDimensionTheyLoseNothing) {
    const Vectors means = normal_vectors(4, 1, 1), x = normal_vectors(50, 1, 2);
    const int32_t partner = 2;
    const uint16_t cell = 0;
    for (int bits : {1, 2, 4}) {
        CellCodes codes;
        codes.init(4, 1, bits, means.x.data(), false);
        std::vector<uint8_t> record(codes.shape.entry_bytes());
        for (size_t i = 0; i < x.n; i++) {
            codes.encode(
                    1,
                    0.3f,
                    &partner,
                    1,
                    x.row(i),
                    nullptr,
                    nullptr,
                    &cell,
                    record.data());
            float decoded;
            codes.decode(1, 0.3f, 2, means.x.data(), record.data(), &decoded);
            EXPECT_NEAR(decoded, *x.row(i), 1e-5) << bits;
        }
    }
}

TEST(CellCodes, EntriesAreKeptOneByOne) {
    for (size_t d : {1, 16, 50, 100}) {
        for (int bits : {1, 2, 4}) {
            CellCodes codes = codes_of(d, bits);
            const size_t bytes = codes.shape.entry_bytes(), n = 40;
            std::mt19937 rng(4);
            std::vector<std::vector<uint8_t>> records(n);
            std::vector<uint8_t> got(bytes);
            auto expect_all = [&](size_t end) {
                for (size_t e = 0; e < end; e++) {
                    codes.get(2, e, got.data());
                    ASSERT_EQ(got, records[e]) << d << " " << bits << " " << e;
                }
            };
            for (size_t e = 0; e < n; e++) { // one more at a time
                records[e].resize(bytes);
                for (uint8_t& v : records[e]) {
                    v = uint8_t(rng());
                }
                codes.resize(2, e + 1);
                ASSERT_EQ(
                        codes.blocks[2].size(),
                        (e / 16 + 1) * codes.shape.block_bytes());
                ASSERT_EQ(
                        reinterpret_cast<size_t>(codes.blocks[2].data()) % 64,
                        0u);
                codes.set(2, e, records[e].data());
                expect_all(e + 1);
            }
            for (auto [from, to] :
                 {std::pair<size_t, size_t>{39, 0},
                  {5, 6},
                  {17, 2},
                  {3, 33},
                  {8, 8}}) {
                codes.move(2, from, to);
                records[to] = records[from];
                expect_all(n);
            }
            for (size_t size = 1; size <= n / 2; size++) {
                for (size_t from = 0; from + size <= n; from++) {
                    const size_t to = // on either side of it
                            from >= size ? rng() % (from - size + 1)
                            : from + 2 * size <= n
                            ? from + size + rng() % (n - from - 2 * size + 1)
                            : n;
                    if (to < n) {
                        codes.move_run(2, from, size, to);
                        std::copy_n(&records[from], size, &records[to]);
                        expect_all(n);
                    }
                }
            }
            codes.resize(2, 17);
            expect_all(17);
            EXPECT_TRUE(codes.blocks[1].empty());
            const CellCodes copy = codes;
            codes.clear_entries();
            EXPECT_EQ(codes.blocks.size(), 4u);
            EXPECT_TRUE(codes.blocks[2].empty());
            EXPECT_FALSE(codes.empty());
            EXPECT_EQ(codes.rotated_means, copy.rotated_means);
            copy.get(2, 16, got.data());
            EXPECT_EQ(got, records[16]);
        }
    }
}

TEST(CellCodes, BitsAreOfThreeNumbers) {
    const std::vector<float> means(4 * 8);
    CellCodes codes = codes_of(8, 2);
    for (int bits : {-1, 0, 3, 5, 8}) {
        EXPECT_FAISS_ERROR(
                codes.init(4, 8, bits, means.data(), false),
                "code_bits = " + std::to_string(bits));
        EXPECT_EQ(codes.shape.bits, 2); // as it was
    }
    EXPECT_TRUE(CellCodes().empty());
    for (size_t d = 1; d < 2000; d = 2 * d + 1) {
        const int bits = CellCodes::default_bits(d);
        EXPECT_EQ(bits, d < 32 ? 4 : d < 256 ? 2 : 1) << d;
    }
}

TEST(CellCodes, AnEntryTakesAsManyBytesAsTheHeaderSays) {
    for (size_t d : {1, 16, 96, 128, 200, 1536}) {
        for (int bits : {1, 2, 4}) {
            const CellCodes codes = codes_of(d, bits);
            const size_t padded = (d * bits + 15) / 16 * 16;
            EXPECT_EQ(codes.shape.entry_bytes(), padded / 8 + 8);
            EXPECT_EQ(
                    codes.shape.block_bytes(), 16 * codes.shape.entry_bytes());
        }
    }
}

} // namespace
} // namespace faiss_ext
