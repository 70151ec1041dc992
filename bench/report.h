#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

namespace bench {

/// One index with one setting: a row of the table and of the JSON.
struct Row {
    std::string factory; ///< what was built
    std::string label;   ///< the curve that the row belongs to
    std::string setting; ///< "nprobe=8"
    double recall_at_k = 0;
    double distances_per_query = 0; ///< each vector once for each query
    double coarse_distances_per_query = 0;
    double cell_scores_per_query = 0;
    double codes_per_query = 0;
    double refine_distances_per_query = 0;
    double total_cost_per_query = 0; ///< see set_total_cost
    std::map<size_t, double> qps;    ///< by batch size; empty: not measured
    double copies_per_vector = 1;
    size_t index_bytes = 0;
    double train_seconds = 0;
    double add_seconds = 0;

    /// In distances of d dimensions; a cell's score is four operations, a look
    /// at a code an eighth of a distance, as its bytes are (2 bits).
    void set_total_cost(size_t d) {
        total_cost_per_query = distances_per_query +
                coarse_distances_per_query + refine_distances_per_query +
                4.0 / d * cell_scores_per_query + codes_per_query / 8;
    }
};

/// Recall against cost: the points that no cheaper point equals.
struct Frontier {
    std::vector<double> recall; ///< ascending
    std::vector<double> cost;   ///< ascending

    void add(double r, double c);
    void finish();
    /// Linear between points; nothing beyond either end.
    std::optional<double> cost_at(double r) const;
    /// The same; more money than the dearest point costs buys that point.
    std::optional<double> recall_at(double c) const;
};

/// Recall at which a sweep has nothing more to show.
constexpr double kEnoughRecall = 0.9995;

/// 1, 2, 3, 4, 5, 6, 8, 10, 13, 16 ... last: three to each doubling.
std::vector<size_t> geometric(size_t last);

/// A line on stderr that the next one replaces, if a person is watching.
void progress(const std::string& line);

/// Prints the rows of one label under one heading.
void print_rows(const std::vector<Row>& rows);

/** Prints, for each label and each pool, the baseline's cost over its own at
 * given recalls, and returns the same for the JSON.
 *
 * @param baseline  a pattern (as of file names) of labels; if it matches
 *                  several, the best of them at each recall
 * @param pools     patterns whose labels are compared as one as well
 */
nlohmann::json compare(
        const std::vector<Row>& rows,
        const std::string& baseline,
        const std::vector<std::string>& pools);

/// The machine, the date, the command without folders, the versions.
nlohmann::json provenance(int argc, const char* const* argv);

nlohmann::json to_json(const std::vector<Row>& rows);

void write_json(const std::string& path, const nlohmann::json& json);

/// As a shell matches file names: * and ?.
bool matches(const std::string& pattern, const std::string& text);

} // namespace bench
