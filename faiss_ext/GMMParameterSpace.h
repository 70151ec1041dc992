#pragma once

#include <faiss/AutoTune.h>

namespace faiss_ext {

/** faiss::ParameterSpace with the parameters of GMM indexes.
 *
 * Sets nprobe, max_codes, probe_mass, target_recall and probe_order (the number
 * of the ProbeOrder, or in a string its name), however the index is wrapped, in
 * all parts of IndexShards and IndexReplicas; other parameters go to
 * faiss::ParameterSpace. explore() tries nprobe, probe_mass and, where there is
 * an IndexRefine, k_factor_rf. nprobe changes nothing while the index has a
 * target_recall: set that to 0 before.
 */
struct GMMParameterSpace : faiss::ParameterSpace {
    using faiss::ParameterSpace::set_index_parameters;

    /// Makes the ranges of values that explore() tries.
    void initialize(const faiss::Index* index) override;

    /// "nprobe=16,probe_mass=0.9,probe_order=codes", with spaces wherever one
    /// likes. If anything in the string is wrong, it throws and none of the
    /// five parameters above is set; FAISS's others are set one by one.
    void set_index_parameters(
            faiss::Index* index, const char* description) const;

    /// Throws FaissException for a value out of range, naming it.
    void set_index_parameter(
            faiss::Index* index,
            const std::string& name,
            double val) const override;
};

} // namespace faiss_ext
