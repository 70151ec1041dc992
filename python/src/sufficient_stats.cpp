#include <string>
#include <vector>

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "Error.h"
#include "SufficientStats.h"
#include "bindings.h"

namespace faiss_ext_python {

namespace {

/// A copy, as numpy.
nb::object copied(
        const std::vector<double>& values, std::vector<size_t> shape) {
    return to_numpy(std::vector<double>(values), std::move(shape));
}

} // namespace

void bind_sufficient_stats(nb::module_& m) {
    using Stats = gmm::SufficientStats;
    auto second_moments = [](const Stats& s) {
        std::vector<size_t> shape = {s.sum_x2.size()};
        if (s.covariance == gmm::Covariance::diagonal ||
            s.covariance == gmm::Covariance::full) {
            shape = {s.k, s.sum_x2.size() / s.k};
        }
        return copied(s.sum_x2, shape);
    };
    nb::class_<Stats>(
            m,
            "SufficientStats",
            "What an E-step leaves for the M-step; sums of blocks can be "
            "merged in any grouping.")
            .def_prop_ro(
                    "covariance_type",
                    [](const Stats& s) {
                        return covariance_name(s.covariance);
                    })
            .def_prop_ro(
                    "n_k", [](const Stats& s) { return copied(s.n_k, {s.k}); })
            .def_prop_ro(
                    "sum_x",
                    [](const Stats& s) {
                        return copied(s.sum_x, {s.k, s.d});
                    })
            .def_prop_ro("sum_x2", second_moments)
            .def_ro("weight", &Stats::weight)
            .def_ro("objective", &Stats::objective)
            .def("merge", &Stats::merge, nb::arg("other"))
            .def("__getstate__",
                 [](const Stats& s) {
                     return nb::make_tuple(
                             covariance_name(s.covariance),
                             s.k,
                             s.d,
                             copied(s.n_k, {s.n_k.size()}),
                             copied(s.sum_x, {s.sum_x.size()}),
                             copied(s.sum_x2, {s.sum_x2.size()}),
                             s.weight,
                             s.objective,
                             s.dropped_mass);
                 })
            .def("__setstate__", [](Stats& s, nb::tuple state) {
                auto values = [&](size_t i) {
                    Vector<const double> array;
                    if (nb::try_cast(state[i], array)) {
                        return std::vector<double>(
                                array.data(), array.data() + array.size());
                    }
                    // a list, as earlier versions wrote it
                    return nb::cast<std::vector<double>>(state[i]);
                };
                new (&s) Stats(
                        covariance_from_string(nb::cast<std::string>(state[0])),
                        nb::cast<size_t>(state[1]),
                        nb::cast<size_t>(state[2]));
                const auto take = [&](std::vector<double>& sums, size_t i) {
                    std::vector<double> given = values(i);
                    if (given.size() != sums.size()) {
                        gmm::throw_invalid(
                                "the state holds %zu sums, expected %zu",
                                given.size(),
                                sums.size());
                    }
                    sums = std::move(given);
                };
                take(s.n_k, 3);
                take(s.sum_x, 4);
                take(s.sum_x2, 5);
                s.weight = nb::cast<double>(state[6]);
                s.objective = nb::cast<double>(state[7]);
                s.dropped_mass = nb::cast<double>(state[8]);
            });
}

} // namespace faiss_ext_python
