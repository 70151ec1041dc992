#include "report.h"

#include <fnmatch.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <set>
#include <stdexcept>
#include <thread>

#include <faiss/Index.h>
#include <fmt/chrono.h>
#include <fmt/format.h>

namespace bench {

namespace {

const double kRecalls[] = {0.5, 0.7, 0.8, 0.9, 0.95, 0.99};

/// What a row costs; nothing if that was not measured.
using Cost = std::function<std::optional<double>(const Row&)>;

Frontier frontier_of(
        const std::vector<Row>& rows,
        const Cost& cost,
        const std::string& label) {
    Frontier f;
    for (const Row& row : rows) {
        const auto c = row.label == label ? cost(row) : std::nullopt;
        if (c) {
            f.add(row.recall_at_k, *c);
        }
    }
    f.finish();
    return f;
}

/// Cheapest of several curves, each interpolated on its own: a line from one
/// index's point to another's would be an index that nobody has.
struct Pool {
    std::vector<Frontier> curves;

    std::optional<double> cost_at(double recall) const {
        std::optional<double> best;
        for (const auto& curve : curves) {
            const auto c = curve.cost_at(recall);
            if (c && (!best || *c < *best)) {
                best = c;
            }
        }
        return best;
    }
    std::optional<double> recall_at(double cost) const {
        std::optional<double> best;
        for (const auto& curve : curves) {
            const auto r = curve.recall_at(cost);
            if (r && (!best || *r > *best)) {
                best = r;
            }
        }
        return best;
    }
};

std::vector<std::string> labels_of(const std::vector<Row>& rows) {
    std::vector<std::string> labels;
    for (const Row& row : rows) {
        if (std::find(labels.begin(), labels.end(), row.label) ==
            labels.end()) {
            labels.push_back(row.label);
        }
    }
    return labels;
}

Pool pool_of(
        const std::vector<Row>& rows,
        const Cost& cost,
        const std::string& pattern) {
    Pool pool;
    for (const auto& label : labels_of(rows)) {
        if (label == pattern || matches(pattern, label)) {
            pool.curves.push_back(frontier_of(rows, cost, label));
        }
    }
    return pool;
}

nlohmann::json compare_one(
        const std::string& name, const Pool& baseline, const Pool& ours) {
    nlohmann::json ratios, gains;
    fmt::print("  {:<34}", name);
    for (const double recall : kRecalls) {
        const auto theirs = baseline.cost_at(recall);
        const auto mine = ours.cost_at(recall);
        if (theirs && mine) {
            ratios[fmt::format("{}", recall)] = *theirs / *mine;
            fmt::print(" {:>6.2f}", *theirs / *mine);
        } else {
            ratios[fmt::format("{}", recall)] = nullptr;
            fmt::print(" {:>6}", "-");
        }
    }
    for (const double recall : {0.8, 0.9}) {
        const auto cost = baseline.cost_at(recall);
        const auto mine = cost ? ours.recall_at(*cost) : std::nullopt;
        if (mine) {
            gains[fmt::format("{}", recall)] = *mine - recall;
            fmt::print(" {:>+7.1f}", 100 * (*mine - recall));
        } else {
            gains[fmt::format("{}", recall)] = nullptr;
            fmt::print(" {:>7}", "-");
        }
    }
    // The worst point of the curve, wherever both curves are known.
    double worst = std::numeric_limits<double>::infinity(), where = 0;
    for (int i = 300; i <= 999; i++) {
        const auto theirs = baseline.cost_at(i / 1000.0);
        const auto mine = ours.cost_at(i / 1000.0);
        if (theirs && mine && *theirs / *mine < worst) {
            worst = *theirs / *mine;
            where = i / 1000.0;
        }
    }
    nlohmann::json result{
            {"label", name}, {"ratio_at_recall", ratios}, {"gain_at", gains}};
    if (where > 0) {
        fmt::print("  {:>5.2f} at {:.3f}", worst, where);
        result["worst_ratio"] = worst;
        result["worst_at_recall"] = where;
    }
    fmt::print("\n");
    return result;
}

std::string cpu_model() {
    std::ifstream info("/proc/cpuinfo");
    for (std::string line; std::getline(info, line);) {
        if (line.rfind("model name", 0) == 0) {
            const auto colon = line.find(": ");
            return colon == std::string::npos ? line : line.substr(colon + 2);
        }
    }
    return "unknown";
}

} // namespace

bool matches(const std::string& pattern, const std::string& text) {
    return fnmatch(pattern.c_str(), text.c_str(), 0) == 0;
}

std::vector<size_t> geometric(size_t last) {
    std::vector<size_t> values;
    size_t value = 0;
    for (double v = 1; value < last; v *= std::cbrt(2.0)) {
        const auto next = std::min<size_t>(std::lround(v), last);
        if (next > value) {
            values.push_back(value = next);
        }
    }
    return values;
}

void Frontier::add(double r, double c) {
    recall.push_back(r);
    cost.push_back(c);
}

void Frontier::finish() {
    std::vector<std::pair<double, double>> points;
    for (size_t i = 0; i < recall.size(); i++) {
        points.emplace_back(cost[i], -recall[i]);
    }
    std::sort(points.begin(), points.end());
    recall.clear();
    cost.clear();
    for (const auto& [c, minus_r] : points) {
        if (recall.empty() || -minus_r > recall.back()) {
            recall.push_back(-minus_r);
            cost.push_back(c);
        }
    }
}

static std::optional<double> interpolate(
        const std::vector<double>& x, const std::vector<double>& y, double at) {
    const auto right = std::lower_bound(x.begin(), x.end(), at);
    if (right == x.end() || (right == x.begin() && *right != at)) {
        return std::nullopt;
    }
    const size_t i = right - x.begin();
    if (x[i] == at) {
        return y[i];
    }
    const double t = (at - x[i - 1]) / (x[i] - x[i - 1]);
    return y[i - 1] + t * (y[i] - y[i - 1]);
}

std::optional<double> Frontier::cost_at(double r) const {
    return interpolate(recall, cost, r);
}

std::optional<double> Frontier::recall_at(double c) const {
    if (!cost.empty() && c > cost.back()) {
        return recall.back(); // and change left over
    }
    return interpolate(cost, recall, c);
}

void progress(const std::string& line) {
    if (isatty(STDERR_FILENO)) {
        fmt::print(stderr, "\r\033[K{}", line);
    } else if (!line.empty()) {
        fmt::print(stderr, "{}\n", line);
    }
}

void print_rows(const std::vector<Row>& rows) {
    if (rows.empty()) {
        return;
    }
    progress("");
    const Row& first = rows.front();
    fmt::print(
            "\n{}: {:.2f} copies a vector",
            first.label,
            first.copies_per_vector);
    if (first.index_bytes) { // built, not simulated
        fmt::print(
                ", {:.1f} MB, training {:.1f} s, adding {:.1f} s",
                first.index_bytes / 1e6,
                first.train_seconds,
                first.add_seconds);
    }
    fmt::print(
            "\n  {:<34} {:>7} {:>10} {:>8} {:>9} {:>10}",
            "setting",
            "recall",
            "distances",
            "coarse",
            "scores",
            "total");
    for (const auto& [batch, qps] : first.qps) {
        fmt::print(" {:>10}", fmt::format("qps({})", batch));
    }
    fmt::print("\n");
    for (const Row& row : rows) {
        fmt::print(
                "  {:<34} {:>7.4f} {:>10.1f} {:>8.0f} {:>9.0f} {:>10.1f}",
                row.setting,
                row.recall_at_k,
                row.distances_per_query + row.refine_distances_per_query,
                row.coarse_distances_per_query,
                row.cell_scores_per_query + row.codes_per_query,
                row.total_cost_per_query);
        for (const auto& [batch, qps] : row.qps) {
            fmt::print(" {:>10.0f}", qps);
        }
        fmt::print("\n");
    }
    std::fflush(stdout);
}

nlohmann::json compare(
        const std::vector<Row>& rows,
        const std::string& baseline,
        const std::vector<std::string>& pools) {
    std::vector<std::pair<std::string, Cost>> costs = {
            {"distances_per_query",
             [](const Row& row) { return row.distances_per_query; }},
            {"total_cost_per_query",
             [](const Row& row) { return row.total_cost_per_query; }}};
    std::set<size_t> batches;
    for (const Row& row : rows) {
        for (const auto& [batch, qps] : row.qps) {
            batches.insert(batch);
        }
    }
    for (const size_t batch : batches) {
        costs.emplace_back(
                fmt::format("seconds_per_query, batches of {}", batch),
                [batch](const Row& row) {
                    const auto at = row.qps.find(batch);
                    return at == row.qps.end() ? std::nullopt
                                               : std::optional(1 / at->second);
                });
    }
    nlohmann::json all;
    for (const auto& [cost_name, cost] : costs) {
        const Pool theirs = pool_of(rows, cost, baseline);
        if (theirs.curves.empty()) {
            throw std::runtime_error(
                    "--baseline " + baseline + " matches no curve");
        }
        fmt::print("\n{} of {} over those of\n", cost_name, baseline);
        fmt::print("  {:<34}", "at recall");
        for (const double recall : kRecalls) {
            fmt::print(" {:>6}", recall);
        }
        fmt::print(" {:>7} {:>7}  worst\n", "+@0.8", "+@0.9");
        nlohmann::json list = nlohmann::json::array();
        for (const auto& label : labels_of(rows)) {
            if (label != baseline && !matches(baseline, label)) {
                list.push_back(
                        compare_one(label, theirs, pool_of(rows, cost, label)));
            }
        }
        for (const auto& pool : pools) {
            list.push_back(compare_one(
                    "best of " + pool, theirs, pool_of(rows, cost, pool)));
        }
        all[cost_name] = list;
    }
    fmt::print(
            "(+@0.8: points of recall gained at the cost at which the "
            "baseline has 0.8)\n");
    return {{"baseline", baseline}, {"baseline_over_ours", all}};
}

nlohmann::json provenance(int argc, const char* const* argv) {
    // Folders are the machine's own business: file names are enough.
    std::string command;
    for (int i = 0; i < argc; i++) {
        std::string word = argv[i];
        const auto slash = word.rfind('/');
        if (slash != std::string::npos) {
            const auto equals = word.find('=');
            const std::string option =
                    equals < slash ? word.substr(0, equals + 1) : "";
            word = option + word.substr(slash + 1);
        }
        if (word.find_first_of(" *?;<>|&()") != std::string::npos) {
            word = "'" + word + "'";
        }
        command += (i ? " " : "") + word;
    }
    const auto now = std::chrono::system_clock::to_time_t(
            std::chrono::system_clock::now());
    return {{"command", command},
            {"date", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(now))},
            {"machine",
             {{"cpu", cpu_model()},
              {"cores", std::thread::hardware_concurrency()}}},
            {"versions",
             {{"faiss_ext", FAISS_EXT_VERSION},
              {"faiss",
               fmt::format(
                       "{}.{}.{}",
                       FAISS_VERSION_MAJOR,
                       FAISS_VERSION_MINOR,
                       FAISS_VERSION_PATCH)},
              {"compiler", __VERSION__}}}};
}

nlohmann::json to_json(const std::vector<Row>& rows) {
    nlohmann::json list = nlohmann::json::array();
    for (const Row& row : rows) {
        nlohmann::json j{
                {"factory", row.factory},
                {"label", row.label},
                {"setting", row.setting},
                {"recall_at_k", row.recall_at_k},
                {"distances_per_query", row.distances_per_query},
                {"coarse_distances_per_query", row.coarse_distances_per_query},
                {"cell_scores_per_query", row.cell_scores_per_query},
                {"codes_per_query", row.codes_per_query},
                {"refine_distances_per_query", row.refine_distances_per_query},
                {"total_cost_per_query", row.total_cost_per_query},
                {"copies_per_vector", row.copies_per_vector},
                {"index_bytes", row.index_bytes},
                {"train_seconds", row.train_seconds},
                {"add_seconds", row.add_seconds}};
        if (!row.qps.empty()) {
            // The largest batch is the number; all of them stand beside it.
            j["qps"] = row.qps.rbegin()->second;
            for (const auto& [batch, qps] : row.qps) {
                j["qps_by_batch"][fmt::format("{}", batch)] = qps;
            }
        }
        list.push_back(j);
    }
    return list;
}

void write_json(const std::string& path, const nlohmann::json& json) {
    std::ofstream file(path);
    file << json.dump(1) << "\n";
    if (!file) {
        throw std::runtime_error("cannot write " + path);
    }
}

} // namespace bench
