/** Builds indexes from factory strings on the same data and measures what each
 * setting of their search parameters finds, and at what price. */

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "index_access.h"
#include "inputs.h"
#include "report.h"

namespace {

using bench::Inputs;
using bench::Row;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
}

struct Parameter {
    std::string name;
    std::vector<std::string> values;
};

/// One --sweep: "[FACTORIES [as LABEL]:] name=value,...[; name=value,...]".
struct Sweep {
    std::string factories; ///< empty: those that no other sweep names
    std::string label;     ///< empty: the factory string
    std::vector<Parameter> parameters;
};

std::string trimmed(const std::string& text) {
    const auto begin = text.find_first_not_of(" \t\n");
    const auto end = text.find_last_not_of(" \t\n");
    return begin == std::string::npos ? ""
                                      : text.substr(begin, end - begin + 1);
}

std::vector<std::string> split(const std::string& text, char separator) {
    std::vector<std::string> parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, separator);) {
        parts.push_back(trimmed(part));
    }
    return parts;
}

Sweep parse_sweep(const std::string& text) {
    Sweep sweep;
    std::string body = text;
    const auto colon = text.find(':');
    if (colon != std::string::npos) {
        sweep.factories = trimmed(text.substr(0, colon));
        body = text.substr(colon + 1);
        const auto as = sweep.factories.find(" as ");
        if (as != std::string::npos) {
            sweep.label = trimmed(sweep.factories.substr(as + 4));
            sweep.factories = trimmed(sweep.factories.substr(0, as));
        }
    }
    for (const auto& part : split(body, ';')) {
        const auto equals = part.find('=');
        if (equals == std::string::npos) {
            throw std::runtime_error(fmt::format(
                    "--sweep \"{}\": \"{}\" is not name=value,value,...",
                    text,
                    part));
        }
        sweep.parameters.push_back(
                {trimmed(part.substr(0, equals)),
                 split(part.substr(equals + 1), ',')});
    }
    return sweep;
}

/// Those that name the factory, else those that name none, else nprobe=auto.
std::vector<Sweep> sweeps_for(
        const std::string& factory, const std::vector<Sweep>& sweeps) {
    std::vector<Sweep> named, common;
    for (const Sweep& sweep : sweeps) {
        if (sweep.factories.empty()) {
            common.push_back(sweep);
        } else if (
                sweep.factories == factory ||
                bench::matches(sweep.factories, factory)) {
            named.push_back(sweep);
        }
    }
    if (!named.empty()) {
        return named;
    }
    return common.empty() ? std::vector<Sweep>{parse_sweep("nprobe=auto")}
                          : common;
}

struct Options {
    std::vector<std::string> factories;
    std::vector<std::string> sweeps;
    std::vector<size_t> batches = {0}; ///< 0: all queries at once
    size_t repeat = 1;
    bool in_turns = false;
    std::string json;
    std::string baseline;
    std::vector<std::string> pools;
};

/// An index, and the rows of each of its sweeps.
struct Measured {
    std::shared_ptr<faiss::Index> index;
    std::vector<std::vector<Row>> sweeps;
};

/// Searches every query, so many (0: all) at once; returns the seconds that it
/// took.
double search_all(
        const faiss::Index& index,
        const Inputs& inputs,
        size_t batch,
        std::vector<int64_t>& labels) {
    const auto& xq = inputs.xq;
    batch = batch > 0 ? std::min(batch, xq.n) : xq.n;
    std::vector<float> distances(xq.n * inputs.k);
    labels.resize(xq.n * inputs.k);
    const auto start = Clock::now();
    for (size_t i = 0; i < xq.n; i += batch) {
        index.search(
                std::min(batch, xq.n - i),
                xq.row(i),
                inputs.k,
                distances.data() + i * inputs.k,
                labels.data() + i * inputs.k);
    }
    return seconds_since(start);
}

double median(std::vector<double> values) {
    const auto middle = values.begin() + values.size() / 2;
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}

/// Fills what a setting finds and counts.
void count(const faiss::Index& index, const Inputs& inputs, Row& row) {
    const size_t nq = inputs.xq.n;
    std::vector<int64_t> labels;
    bench::reset_counts();
    search_all(index, inputs, 0, labels);
    const auto counts = bench::counts_per_query(index, nq, inputs.k);
    row.distances_per_query = counts.distances;
    row.coarse_distances_per_query = counts.coarse;
    row.cell_scores_per_query = counts.scores;
    row.codes_per_query = counts.codes;
    row.refine_distances_per_query = counts.refine;
    row.set_total_cost(inputs.xb.d);
    double recall = 0;
    for (size_t i = 0; i < nq; i++) {
        recall += inputs.truth.recall(i, labels.data() + i * inputs.k);
    }
    row.recall_at_k = recall / nq;
}

/// Fills how long the settings take: in rounds through all indexes, so that
/// what a machine does beside them, for a while, is shared by all.
void time_in_turns(
        std::span<Measured> all, const Inputs& inputs, const Options& options) {
    std::vector<int64_t> labels;
    std::map<std::pair<Row*, size_t>, std::vector<double>> seconds;
    for (size_t r = 0; r < options.repeat; r++) {
        for (Measured& measured : all) {
            faiss::Index& index = *measured.index;
            const auto restore = bench::remember_parameters(index);
            for (auto& sweep : measured.sweeps) {
                for (Row& row : sweep) {
                    if (!row.setting.empty()) {
                        bench::set_parameters(index, row.setting);
                    }
                    for (size_t batch : options.batches) {
                        seconds[{&row, batch}].push_back(
                                search_all(index, inputs, batch, labels));
                    }
                    restore();
                }
            }
        }
    }
    const size_t nq = inputs.xq.n;
    for (auto& [of, times] : seconds) {
        const auto& [row, batch] = of;
        row->qps[batch > 0 ? std::min(batch, nq) : nq] = nq / median(times);
    }
}

/// All settings of one sweep, each starting from the index's own; the last
/// parameter varies fastest, and its remaining values are skipped once recall
/// is as good as 1.
std::vector<Row> run_sweep(
        faiss::Index& index,
        const Sweep& sweep,
        const Inputs& inputs,
        const Row& built) {
    std::vector<std::vector<std::string>> values;
    for (const auto& parameter : sweep.parameters) {
        auto& list = values.emplace_back(parameter.values);
        if (list == std::vector<std::string>{"auto"}) {
            list = bench::nprobe_series(index);
        }
        if (list.empty()) {
            list.push_back(""); // not an IVF: nothing to vary
        }
    }
    const auto restore = bench::remember_parameters(index);
    std::vector<Row> rows;
    std::vector<size_t> at(values.size(), 0);
    while (true) {
        Row row = built;
        for (size_t p = 0; p < values.size(); p++) {
            const auto& value = values[p][at[p]];
            if (!value.empty()) {
                row.setting += (row.setting.empty() ? "" : ",") +
                        sweep.parameters[p].name + "=" + value;
            }
        }
        if (!row.setting.empty()) {
            bench::set_parameters(index, row.setting);
        }
        count(index, inputs, row);
        restore();
        bench::progress(fmt::format(
                "{} {}: recall {:.4f}, {:.0f} distances",
                row.label,
                row.setting,
                row.recall_at_k,
                row.distances_per_query));
        rows.push_back(row);

        size_t p = values.size() - 1;
        if (row.recall_at_k >= bench::kEnoughRecall) {
            at[p] = values[p].size() - 1;
        }
        while (++at[p] == values[p].size()) {
            at[p] = 0;
            if (p == 0) {
                return rows;
            }
            p--;
        }
    }
}

/// Times and prints them.
void finish(
        std::span<Measured> all, const Inputs& inputs, const Options& options) {
    time_in_turns(all, inputs, options);
    for (const Measured& measured : all) {
        for (const auto& rows : measured.sweeps) {
            bench::print_rows(rows);
        }
    }
}

/// Appends what it measures; what is built with --in-turns is timed later.
void run_factory(
        const std::string& factory,
        const std::vector<Sweep>& sweeps,
        const Inputs& inputs,
        const Options& options,
        std::vector<Measured>& all) {
    Row built;
    built.factory = factory;
    const auto parts = split(factory, ';');
    const std::shared_ptr<faiss::Index> index =
            bench::build(parts.at(0), inputs.xb.d, inputs.metric);
    for (size_t i = 1; i < parts.size(); i++) {
        bench::set_parameters(*index, parts[i]);
    }
    Inputs::set_threads(inputs.build_threads);
    bench::progress(factory + ": training");
    auto start = Clock::now();
    index->train(inputs.training().n, inputs.training().x.data());
    built.train_seconds = seconds_since(start);
    bench::progress(factory + ": adding");
    start = Clock::now();
    index->add(inputs.xb.n, inputs.xb.x.data());
    built.add_seconds = seconds_since(start);
    built.copies_per_vector = bench::copies_per_vector(*index);
    built.index_bytes = bench::serialized_bytes(*index);
    Inputs::set_threads(inputs.threads);

    const auto run_all = [&](const std::string& suffix) {
        all.push_back({index, {}});
        Measured& measured = all.back();
        for (const Sweep& sweep : sweeps_for(factory, sweeps)) {
            built.label =
                    (sweep.label.empty() ? factory : sweep.label) + suffix;
            measured.sweeps.push_back(run_sweep(*index, sweep, inputs, built));
        }
        if (!options.in_turns) {
            finish({&measured, 1}, inputs, options);
        }
    };
    run_all("");
    if (inputs.xc.n &&
        bench::calibrate(*index, inputs.xc.n, inputs.xc.x.data(), inputs.k)) {
        run_all(" calibrated");
    }
}

} // namespace

int main(int argc, char** argv) {
    CLI::App app(
            "Recall, distance counts and speed of FAISS indexes built from "
            "factory strings, with GMM<nlist> where IVF<nlist> stands.");
    Inputs inputs;
    Options options;
    inputs.add_options(app);
    app.add_option(
               "--factory",
               options.factories,
               "Index to build, as many as you like. \"GMM256,Flat; a=1,b=2\" "
               "sets parameters before training")
            ->required()
            ->delimiter('\n');
    app.add_option(
               "--sweep",
               options.sweeps,
               "[FACTORIES [as LABEL]:] name=value,...[; name=value,...]: all "
               "combinations, each parameter's values from cheap to "
               "expensive. FACTORIES is a factory string or a pattern with * "
               "and ?; without it the sweep serves every factory that no "
               "other names. nprobe=auto, the default, is 1, 2, 3, 4, 5, 6, "
               "8, 10 ... nlist. Each sweep is a curve of its own, called "
               "LABEL or as its factory")
            ->delimiter('\n');
    app.add_option(
               "--batch",
               options.batches,
               "Queries in one search call; several: each is timed; 0: all "
               "(default)")
            ->delimiter(',');
    app.add_option("--repeat", options.repeat, "QPS: the median of so many")
            ->capture_default_str()
            ->check(CLI::PositiveNumber);
    auto in_turns = app.add_flag(
            "--in-turns",
            options.in_turns,
            "Build all indexes first and time them in --repeat rounds, all "
            "after each other: on a machine that others use");
    app.add_option(
               "--calibrate",
               inputs.held_out,
               "Hold out so many queries; measure on the others, calibrate "
               "with them where the index can, and measure again")
            ->excludes(in_turns);
    app.add_option("--json", options.json, "Write all rows to this file");
    app.add_option(
            "--baseline",
            options.baseline,
            "Compare every curve with this one (or the best of a pattern's)");
    app.add_option(
               "--pool",
               options.pools,
               "With --baseline: compare the best of a pattern's curves too")
            ->delimiter('\n');
    CLI11_PARSE(app, argc, argv);

    try {
        std::vector<Sweep> sweeps;
        for (const auto& text : options.sweeps) {
            sweeps.push_back(parse_sweep(text));
        }
        inputs.load();
        auto json = bench::provenance(argc, argv);
        json["data"] = inputs.describe();
        json["repeat"] = options.repeat;
        std::vector<Row> rows;
        const auto keep = [&](const std::vector<Measured>& all) {
            for (const Measured& measured : all) {
                for (const auto& sweep : measured.sweeps) {
                    rows.insert(rows.end(), sweep.begin(), sweep.end());
                }
            }
            json["results"] = bench::to_json(rows);
            if (!options.json.empty()) { // an interrupted run leaves something
                bench::write_json(options.json, json);
            }
        };
        std::vector<Measured> all;
        for (const auto& factory : options.factories) {
            run_factory(factory, sweeps, inputs, options, all);
            if (!options.in_turns) {
                keep(all);
                all.clear();
            }
        }
        finish(all, inputs, options);
        keep(all);
        if (!options.baseline.empty()) {
            json["comparison"] =
                    bench::compare(rows, options.baseline, options.pools);
            if (!options.json.empty()) {
                bench::write_json(options.json, json);
            }
        }
    } catch (const std::exception& e) {
        bench::progress("");
        fmt::print(stderr, "recall_sweep: {}\n", e.what());
        return 1;
    }
}
