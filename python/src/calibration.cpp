#include <cinttypes>
#include <cstdio>

#include <nanobind/stl/string.h>

#include <faiss/impl/FaissAssert.h>

#include "bindings.h"
#include "faiss_ext/Calibration.h"

namespace faiss_ext_python {

using faiss_ext::Calibration;
using Point = Calibration::Point;

namespace {

std::string point_repr(const Point& p) {
    char text[256];
    snprintf(
            text,
            sizeof(text),
            "<CalibrationPoint of %s: budget=%.6g, bound=%.3g, recall=%.4f, "
            "codes=%.6g, distances=%.6g, cost=%.6g ns>",
            p.by_codes ? "codes" : "lists",
            double(p.budget),
            double(p.bound),
            double(p.recall),
            double(p.codes),
            double(p.distances),
            double(p.cost));
    return text;
}

std::string costs_repr(const Calibration::Costs& c) {
    char text[128];
    snprintf(
            text,
            sizeof(text),
            "<SearchCosts: query=%.4g, code=%.4g, distance=%.4g, scan=%.4g ns>",
            double(c.query),
            double(c.code),
            double(c.distance),
            double(c.scan));
    return text;
}

std::string calibration_repr(const Calibration& c) {
    if (!c.fitted) {
        return "<Calibration, not fitted>";
    }
    char text[128];
    snprintf(
            text,
            sizeof(text),
            "<Calibration for k=%" PRId64 " on %" PRId64 " %s, of %" PRId64
            " vectors>",
            int64_t(c.k),
            int64_t(c.nq),
            c.own_queries ? "vectors of the index" : "queries given",
            int64_t(c.ntotal));
    return text;
}

} // namespace

void bind_calibration(nb::module_& m) {
    nb::class_<Point>(m, "CalibrationPoint", "A setting that was measured.")
            .def("__repr__", &point_repr)
            .def_ro("by_codes", &Point::by_codes)
            .def_ro("budget", &Point::budget)
            .def_ro("bound", &Point::bound)
            .def_ro("recall", &Point::recall)
            .def_ro("codes", &Point::codes)
            .def_ro("distances", &Point::distances)
            .def_ro("cost", &Point::cost)
            .def_ro("reach", &Point::reach);
    nb::class_<Calibration::Costs>(
            m,
            "SearchCosts",
            "What parts of a search take, in nanoseconds of one thread.")
            .def(nb::init<>())
            .def("__repr__", &costs_repr)
            .def_rw("query", &Calibration::Costs::query)
            .def_rw("code", &Calibration::Costs::code)
            .def_rw("distance", &Calibration::Costs::distance)
            .def_rw("scan", &Calibration::Costs::scan);
    nb::class_<Calibration>(
            m, "Calibration", "What an index learnt from known neighbours.")
            .def("__repr__", &calibration_repr)
            .def_ro("fitted", &Calibration::fitted)
            .def_ro("k", &Calibration::k)
            .def_ro("ntotal", &Calibration::ntotal)
            .def_ro("nq", &Calibration::nq)
            .def_ro("own_queries", &Calibration::own_queries)
            .def_ro("farthest",
                    &Calibration::farthest,
                    "Of its queries the farthest from its nearest mean, "
                    "squared; queries farther than that look on.")
            .def(
                    "choose",
                    [](const Calibration& self,
                       float target_recall,
                       int64_t k) {
                        FAISS_THROW_IF_NOT_FMT(
                                k >= 0,
                                "k = %zd, expected at least 0",
                                ssize_t(k));
                        return Point(self.choose(target_recall, k));
                    },
                    nb::arg("target_recall"),
                    nb::arg("k") = 10,
                    "The cheapest setting that reached the recall, in (0, 1].")
            .def("report",
                 &Calibration::report,
                 "What was compared and what won, as a table.")
            .def(
                    "curves",
                    [](const Calibration& self) {
                        nb::list out;
                        for (const auto& curve : self.curves) {
                            nb::list points;
                            for (const auto& p : curve.points) {
                                points.append(p);
                            }
                            out.append(nb::make_tuple(curve.k, points));
                        }
                        return out;
                    },
                    "For each number of neighbours, increasing, the settings "
                    "that were measured, from cheap to sure.");
}

} // namespace faiss_ext_python
