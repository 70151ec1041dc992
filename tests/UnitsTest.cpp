// The unit of the vectors is nobody's business: powers of two change nothing,
// and neither does where the origin is.
#include "IvfTestTools.h"

namespace faiss_ext {
namespace {

Vectors scaled(Vectors x, float scale, float offset) {
    for (float& value : x.x) {
        value = value * scale + offset;
    }
    return x;
}

struct Results {
    Outcome by_codes, by_lists, by_target;
};

Results results(faiss::MetricType metric, float scale, float offset = 0) {
    const Vectors data = scaled(sift_base(10000), scale, offset);
    const Vectors q = scaled(sift_queries(200), scale, offset);
    const auto index = trained(rows_of(data, 0, 5000), 64, metric);
    index->calibrate_on_add = true;
    index->calibration.costs = {3000, 1, 30, 10}; // the same in every unit
    index->add(data.n, data.x.data());
    const Found truth = truth_of(*index, q);
    Results out;
    SearchParametersIVFGMM params;
    params.nprobe = 4;
    params.probe_order = ProbeOrder::codes;
    out.by_codes = outcome(*index, q, truth, params);
    params.probe_order = ProbeOrder::distance;
    out.by_lists = outcome(*index, q, truth, params);
    params.probe_order = ProbeOrder::calibrated;
    params.target_recall = 0.9;
    out.by_target = outcome(*index, q, truth, params);
    return out;
}

TEST(Units, DoNotMatter) {
    for (auto metric : {faiss::METRIC_L2, faiss::METRIC_INNER_PRODUCT}) {
        const Results usual = results(metric, 1);
        EXPECT_GT(usual.by_target.recall, 0.85);
        for (int power : {-40, -24, 10, 30}) {
            SCOPED_TRACE(
                    testing::Message()
                    << "metric " << int(metric) << ", 2^" << power);
            const Results r = results(metric, std::ldexp(1.f, power));
            EXPECT_NEAR(r.by_codes.recall, usual.by_codes.recall, 0.01);
            EXPECT_NEAR(r.by_lists.recall, usual.by_lists.recall, 0.01);
            EXPECT_NEAR(r.by_target.recall, usual.by_target.recall, 0.03);
            EXPECT_NEAR(
                    r.by_target.distances,
                    usual.by_target.distances,
                    0.25 * usual.by_target.distances);
        }
    }
}

TEST(Units, NorDoesTheOrigin) {
    const Results usual = results(faiss::METRIC_L2, 1);
    for (float offset : {3e3f, 6e4f, 1e6f}) { // SIFT: whole numbers up to 255
        SCOPED_TRACE(offset);
        const Results r = results(faiss::METRIC_L2, 1, offset);
        EXPECT_NEAR(r.by_codes.recall, usual.by_codes.recall, 0.01);
        EXPECT_NEAR(r.by_lists.recall, usual.by_lists.recall, 0.01);
        EXPECT_NEAR(r.by_target.recall, usual.by_target.recall, 0.03);
    }
}

} // namespace
} // namespace faiss_ext
