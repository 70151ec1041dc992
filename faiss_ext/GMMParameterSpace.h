#pragma once

#include <faiss/AutoTune.h>

namespace faiss_ext {

/** faiss::ParameterSpace with the parameters of GMM indexes: for strings
 * nprobe, max_codes, probe_mass, target_recall, probe_order (the number of the
 * ProbeOrder, or its name in a string), wherever the index is wrapped and in
 * all parts of IndexShards and IndexReplicas. AutoTune goes through nprobe,
 * probe_mass and, with an IndexRefine around, k_factor_rf; while the index has
 * a target_recall, nprobe changes nothing, so set that to 0 before explore().
 * The others go to faiss::ParameterSpace.
 */
struct GMMParameterSpace : faiss::ParameterSpace {
    using faiss::ParameterSpace::set_index_parameters;

    void initialize(const faiss::Index* index) override;

    /// "nprobe=16,probe_mass=0.9,probe_order=codes", with spaces
    /// wherever one likes. nprobe, max_codes and the mixture's own are set only
    /// if nothing in the string is wrong; faiss's others one by one, as faiss
    /// does.
    void set_index_parameters(
            faiss::Index* index, const char* description) const;

    /// Throws FaissException for a value out of range, naming it.
    void set_index_parameter(
            faiss::Index* index,
            const std::string& name,
            double val) const override;
};

} // namespace faiss_ext
