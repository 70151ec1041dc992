#include "faiss_ext/GMMParameterSpace.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <limits>
#include <regex>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <faiss/IndexIVF.h>
#include <faiss/IndexRefine.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/impl/ThreadedIndex.h>

#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/impl/convert.h"

namespace faiss_ext {

namespace {

/// Where an index keeps what is set here: an IndexIVFGMM, or the policy of an
/// IndexGMM under a stock IVF index.
struct Target {
    IVFGMM* gmm = nullptr;
    ProbePolicy* policy = nullptr;

    /// `index` is one of the innermost.
    explicit Target(faiss::Index* index) {
        gmm = dynamic_cast<IVFGMM*>(index);
        auto ivf = dynamic_cast<faiss::IndexIVF*>(index);
        if (auto q = dynamic_cast<IndexGMM*>(ivf ? ivf->quantizer : index)) {
            policy = &q->policy;
        }
    }
};

void require(
        bool holds,
        const std::string& name,
        double value,
        const char* expected) {
    FAISS_THROW_IF_NOT_FMT(
            holds, "%s = %g, expected %s", name.c_str(), value, expected);
}

/// The order of that number; throws for numbers that are none.
ProbeOrder order_of(double value) {
    const bool is_int = value == std::floor(value) && std::abs(value) < 1000;
    require(is_int, "probe_order", value, "the number of a ProbeOrder");
    const ProbeOrder order = static_cast<ProbeOrder>(int(value));
    to_string(order);
    return order;
}

bool is_own(const std::string& name) {
    return name == "probe_mass" || name == "target_recall" ||
            name == "probe_order";
}

void check(faiss::Index* index, const std::string& name, double val) {
    if (name == "nprobe") {
        require(val >= 1 && val <= std::numeric_limits<int>::max() &&
                        val == std::floor(val),
                name,
                val,
                "a whole number, 1 to 2147483647");
    }
    if (name == "max_codes") {
        require(val >= 0 && val <= 9e15 && val == std::floor(val),
                name,
                val,
                "a whole number, 0 (no limit) to 9e15");
    }
    if (name == "probe_mass") {
        require(val > 0 && val <= 1, name, val, "a value in (0, 1]");
    } else if (name == "target_recall") {
        require(val >= 0 && val < 1,
                name,
                val,
                "a value in [0, 1); for 1 set nprobe = nlist");
    } else if (name == "probe_order") {
        order_of(val);
    } else {
        return;
    }
    const std::vector<faiss::Index*> parts = innermost(index);
    require(!parts.empty(), name, val, "an index with parts");
    for (faiss::Index* part : parts) {
        const Target target(part);
        FAISS_THROW_IF_NOT_FMT(
                target.gmm || target.policy,
                "%s = %g: the index has no mixture",
                name.c_str(),
                val);
        if (name == "target_recall") {
            char what[64];
            std::snprintf(what, sizeof what, "target_recall = %g", val);
            gmm_of(what, part);
        }
    }
}

/// Whether there is an IndexRefine around what innermost() gives.
bool refines(const faiss::Index* index) {
    auto* part = const_cast<faiss::Index*>(index);
    while (part && !dynamic_cast<const faiss::IndexRefine*>(part)) {
        auto parts = dynamic_cast<faiss::ThreadedIndex<faiss::Index>*>(part);
        faiss::Index** inner = inside(part);
        part = inner                          ? *inner
                : parts && parts->count() > 0 ? parts->at(0)
                                              : nullptr;
    }
    return part != nullptr;
}

/// "a = 1, b=2 c=3", separated by commas or spaces as in FAISS, each in one
/// piece: {"a=1", "b=2", "c=3"}.
std::vector<std::string> split_settings(const std::string& description) {
    static const std::regex around_equals("\\s*=\\s*");
    const std::string text =
            std::regex_replace(description, around_equals, "=");
    static const std::regex setting("[^,\\s]+");
    return {std::sregex_token_iterator(text.begin(), text.end(), setting),
            std::sregex_token_iterator()};
}

/// Of all of `text`, with a point in it wherever the program is: strtod wants
/// the comma of a program that called setlocale.
bool to_number(const std::string& text, double& value) {
    const char* begin = text.data() + (text[0] == '+');
    const char* end = text.data() + text.size();
    const auto [last, error] = std::from_chars(begin, end, value);
    return error == std::errc() && last == end;
}

} // namespace

void GMMParameterSpace::initialize(const faiss::Index* index) {
    const std::vector<faiss::Index*> parts =
            innermost(const_cast<faiss::Index*>(index));
    FAISS_THROW_IF_NOT_MSG(
            !parts.empty(), "initialize: the index has no parts");
    faiss::ParameterSpace::initialize(parts[0]);
    if (refines(index)) {
        add_range("k_factor_rf").values = {1, 2, 4, 8, 16, 32, 64}; // FAISS's
    }
    const Target target(parts[0]);
    const bool stops = target.gmm ||
            (target.policy && target.policy->order == ProbeOrder::scale_free);
    if (stops) {
        add_range("probe_mass").values = {
                0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1};
    }
}

void GMMParameterSpace::set_index_parameters(
        faiss::Index* index, const char* description) const {
    FAISS_THROW_IF_NOT_MSG(
            index && description, "set_index_parameters: no index or string");
    std::vector<std::pair<std::string, double>> settings;
    for (const std::string& setting : split_settings(description)) {
        const size_t equals = setting.find('=');
        const std::string name = setting.substr(0, equals);
        const std::string text =
                equals == std::string::npos ? "" : setting.substr(equals + 1);
        FAISS_THROW_IF_NOT_FMT(
                !name.empty() && !text.empty(),
                "set_index_parameters: \"%s\", expected name=value",
                setting.c_str());
        double value = 0;
        if (!to_number(text, value)) {
            FAISS_THROW_IF_NOT_FMT(
                    name == "probe_order",
                    "set_index_parameters: \"%s\", expected a number",
                    setting.c_str());
            value = int(probe_order_from_string(text));
        }
        check(index, name, value);
        settings.emplace_back(name, value);
    }
    // What faiss knows first: only that can still throw.
    std::stable_partition(settings.begin(), settings.end(), [](const auto& s) {
        return !is_own(s.first) && s.first != "nprobe" &&
                s.first != "max_codes";
    });
    for (const auto& [name, value] : settings) {
        set_index_parameter(index, name, value);
    }
}

void GMMParameterSpace::set_index_parameter(
        faiss::Index* index, const std::string& name, double val) const {
    FAISS_THROW_IF_NOT_MSG(index, "set_index_parameter: no index");
    check(index, name, val);
    if (!is_own(name)) {
        faiss::ParameterSpace::set_index_parameter(index, name, val);
        limit_fast_scan(*index);
        return;
    }
    for (faiss::Index* part : innermost(index)) {
        const auto [gmm, policy] = Target(part);
        if (name == "probe_mass") {
            (gmm ? gmm->probe_mass : policy->probe_mass) = val;
        } else if (name == "target_recall") {
            gmm->target_recall = val;
        } else {
            (gmm ? gmm->probe_order : policy->order) = order_of(val);
        }
    }
}

} // namespace faiss_ext
