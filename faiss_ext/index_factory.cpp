#include "faiss_ext/index_factory.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <optional>
#include <regex>
#include <vector>

#include <faiss/IndexIDMap.h>
#include <faiss/impl/FaissAssert.h>
#include <faiss/index_factory.h>

#include "faiss_ext/IndexGMM.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/IndexIVFRaBitQGMM.h"
#include "faiss_ext/impl/convert.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/ivflib.h"

namespace faiss_ext {

namespace {

struct GMMToken {
    size_t nlist = 0;
    std::optional<size_t> cells_per_list;
    gmm::Covariance covariance = gmm::Covariance::isotropic;
    std::string graph; ///< "_HNSW32", or empty
};

/// Splits at the commas that are not in parentheses.
std::vector<std::string> split(const std::string& description) {
    std::vector<std::string> tokens(1);
    int depth = 0;
    for (char c : description) {
        depth += (c == '(') - (c == ')');
        if (c == ',' && depth == 0) {
            tokens.emplace_back();
        } else {
            tokens.back() += c;
        }
    }
    return tokens;
}

std::string join(const std::vector<std::string>& tokens) {
    std::string out;
    for (const std::string& token : tokens) {
        out += (out.empty() ? "" : ",") + token;
    }
    return out;
}

/// Empty lists alone take 0.8 GB for that many.
constexpr size_t kMostLists = size_t(1) << 24;

/// Digits, and "k" or "M" as in newer FAISS.
size_t parse_count(const std::string& digits, const std::string& token) {
    size_t unit = 1;
    unit = digits.back() == 'k' ? 1024 : unit;
    unit = digits.back() == 'M' ? 1024 * 1024 : unit;
    // Ten digits fit; what is beyond an int is refused below.
    const size_t value =
            digits.size() > 10 ? SIZE_MAX : std::stoull(digits) * unit;
    FAISS_THROW_IF_NOT_FMT(
            value >= 1 && value <= kMostLists,
            "index_factory: \"%s\" in \"%s\", expected 1 to %zu",
            digits.c_str(),
            token.c_str(),
            kMostLists);
    return value;
}

GMMToken parse_token(const std::string& token) {
    static const std::regex pattern(
            "GMM([0-9]+[kM]?)(?:x([0-9]+))?(?:_(Diag|Tied))?"
            "(_HNSW([0-9]*))?");
    std::smatch match;
    FAISS_THROW_IF_NOT_FMT(
            std::regex_match(token, match, pattern),
            "index_factory: \"%s\", expected GMM<nlist>[x<cells>]"
            "[_Diag|_Tied][_HNSW<M>]",
            token.c_str());
    GMMToken out;
    out.nlist = parse_count(match[1], token);
    if (match[2].matched) {
        out.cells_per_list = parse_count(match[2], token);
    }
    if (match[3].matched) {
        out.covariance = match[3] == "Diag" ? gmm::Covariance::diagonal
                                            : gmm::Covariance::tied_spherical;
    }
    out.graph = match[4];
    if (match[5].length() > 0) {
        // FAISS never returns from making a graph of one neighbour.
        const size_t neighbours = parse_count(match[5], token);
        FAISS_THROW_IF_NOT_FMT(
                neighbours >= 2 && neighbours <= 1024,
                "index_factory: M = %zd in \"%s\", expected 2 to 1024",
                neighbours,
                token.c_str());
    }
    return out;
}

/// The bits of "RaBitQ", "RaBitQ1", ...; 0 for other codes.
int parse_codes_alone(const std::string& token) {
    static const std::regex pattern("RaBitQ([0-9]*)");
    std::smatch match;
    if (!std::regex_match(token, match, pattern)) {
        return 0;
    }
    const std::string bits = match[1];
    FAISS_THROW_IF_NOT_FMT(
            bits.empty() || bits == "1" || bits == "2" || bits == "4",
            "index_factory: \"%s\", expected RaBitQ of 1, 2 or 4 bits",
            token.c_str());
    return bits.empty() ? 1 : std::stoi(bits);
}

std::string replace_all(
        std::string text, const std::string& from, const std::string& to) {
    for (size_t at = text.find(from); at != std::string::npos;
         at = text.find(from, at + to.size())) {
        text.replace(at, from.size(), to);
    }
    return text;
}

/// The IVF index where the GMM token stands as FAISS makes it (of vectors where
/// there will be codes alone); its errors
/// come back in the words of the string that was given.
std::unique_ptr<faiss::Index> make_stock(
        int d,
        const char* description,
        std::vector<std::string> tokens,
        size_t place,
        const GMMToken& token,
        bool codes_alone,
        faiss::MetricType metric) {
    const std::string gmm = tokens[place];
    tokens[place] = "IVF" + std::to_string(token.nlist) + token.graph;
    if (codes_alone) { // for its quantizer
        tokens[place + 1] = "Flat";
    }
    try {
        return std::unique_ptr<faiss::Index>(
                faiss::index_factory(d, join(tokens).c_str(), metric));
    } catch (const std::bad_alloc&) {
        throw;
    } catch (const std::exception& e) {
        const std::string why =
                replace_all(without_place(e.what()), tokens[place], gmm);
        FAISS_THROW_FMT(
                "index_factory: \"%s\" of d = %d cannot be made: %s",
                description,
                d,
                why.c_str());
    }
}

/// Types without cells keep their class, and take the mixture as quantizer.
void set_gmm_quantizer(
        faiss::IndexIVF& ivf, const GMMToken& token, const char* description) {
    const bool cells = token.cells_per_list.value_or(1) > 1;
    FAISS_THROW_IF_NOT_FMT(
            !cells && token.graph.empty(),
            "index_factory: \"%s\": FAISS's own %s scans its lists whole and "
            "has no %s over the means, expected Flat, PQ<M> or SQ<bits>",
            description,
            type_name(ivf).c_str(),
            cells ? "cells" : "graph");
    auto quantizer = std::make_unique<IndexGMM>(
            ivf.d, ivf.nlist, token.covariance, ivf.metric_type);
    quantizer->cp = ivf.cp;
    if (ivf.own_fields) {
        delete ivf.quantizer;
    }
    ivf.quantizer = quantizer.release();
    ivf.own_fields = true;
    ivf.quantizer_trains_alone = 1;
}

} // namespace

faiss::Index* index_factory(
        int d, const char* description, faiss::MetricType metric) {
    FAISS_THROW_IF_NOT_MSG(description, "index_factory: no description");
    FAISS_THROW_IF_NOT_FMT(d > 0, "index_factory: d = %d, expected > 0", d);
    const std::vector<std::string> tokens = split(description);
    const auto is_gmm = [](const std::string& token) {
        return token.starts_with("GMM");
    };
    const auto found = std::find_if(tokens.begin(), tokens.end(), is_gmm);
    if (found == tokens.end()) {
        const std::string text = description;
        FAISS_THROW_IF_NOT_FMT(
                text.find("(GMM") == std::string::npos &&
                        text.find(",GMM") == std::string::npos,
                "index_factory: \"%s\" has a GMM in parentheses, expected it "
                "where IVF stands",
                description);
        return faiss::index_factory(d, description, metric);
    }
    const std::string& last = tokens.back();
    if ((tokens[0] == "IDMap" || tokens[0] == "IDMap2") &&
        (last == "RFlat" || last.starts_with("Refine("))) {
        // Around all of it, as in newer FAISS: within what refines, where FAISS
        // 1.7.3 puts it, it takes no ids.
        std::unique_ptr<faiss::Index> inner(faiss_ext::index_factory(
                d, description + tokens[0].size() + 1, metric));
        std::unique_ptr<faiss::IndexIDMap> map;
        if (tokens[0] == "IDMap") {
            map = std::make_unique<faiss::IndexIDMap>(inner.get());
        } else {
            map = std::make_unique<faiss::IndexIDMap2>(inner.get());
        }
        inner.release();
        map->own_fields = true;
        return map.release();
    }
    const auto second = std::find_if(found + 1, tokens.end(), is_gmm);
    FAISS_THROW_IF_NOT_FMT(
            second == tokens.end(),
            "index_factory: \"%s\" is a second GMM",
            second->c_str());
    const auto ivf_token = std::find_if(
            tokens.begin(), tokens.end(), [](const std::string& token) {
                return token.starts_with("IVF");
            });
    FAISS_THROW_IF_NOT_FMT(
            ivf_token == tokens.end(),
            "index_factory: \"%s\" beside \"%s\" in \"%s\", expected one of "
            "them",
            ivf_token->c_str(),
            found->c_str(),
            description);
    static const std::regex zero("(^|\\D)0+(\\D|$)");
    for (const std::string& token : tokens) { // FAISS divides by it
        FAISS_THROW_IF_NOT_FMT(
                token == *found || !std::regex_search(token, zero),
                "index_factory: a number in \"%s\" is 0, expected at least 1",
                token.c_str());
    }
    const GMMToken token = parse_token(*found);
    FAISS_THROW_IF_NOT_FMT(
            found + 1 != tokens.end(),
            "index_factory: \"%s\" has no code behind it, expected one as in "
            "\"%s,Flat\"",
            found->c_str(),
            found->c_str());
    FAISS_THROW_IF_NOT_FMT(
            metric == faiss::METRIC_L2 || metric == faiss::METRIC_INNER_PRODUCT,
            "index_factory: \"%s\" with metric %d, expected METRIC_L2 or "
            "METRIC_INNER_PRODUCT",
            found->c_str(),
            int(metric));

    const size_t place = found - tokens.begin();
    const int bits = parse_codes_alone(tokens[place + 1]);
    std::unique_ptr<faiss::Index> index =
            make_stock(d, description, tokens, place, token, bits > 0, metric);
    faiss::Index* root = index.release();
    faiss::Index** slot = unwrap(&root);
    index.reset(root);
    auto ivf = dynamic_cast<faiss::IndexIVF*>(*slot);
    FAISS_THROW_IF_NOT_FMT(
            ivf,
            "index_factory: \"%s\" is no IVF index with IVF in place of GMM",
            description);
    std::unique_ptr<faiss::IndexIVF> gmm;
    if (bits > 0) {
        gmm = take_as_codes_alone(*ivf);
        dynamic_cast<IVFGMM&>(*gmm).code_bits = bits;
    } else {
        gmm = take_as_gmm(*ivf);
    }
    if (!gmm) {
        set_gmm_quantizer(*ivf, token, description);
        return without_id_maps(std::move(index)).release();
    }
    auto& part = dynamic_cast<IVFGMM&>(*gmm);
    part.covariance = token.covariance;
    part.cells_per_list = token.cells_per_list.value_or(0);
    // Either the wrapper's field, or `root`, which index is let go for.
    if (slot == &root) {
        return gmm.release();
    }
    delete *slot;
    *slot = gmm.release();
    return without_id_maps(std::move(index)).release();
}

} // namespace faiss_ext
