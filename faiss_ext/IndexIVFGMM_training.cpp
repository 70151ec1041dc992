// The members of IndexIVFGMM that train it; IndexIVFGMM.cpp has the others.
#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include <faiss/impl/FaissAssert.h>
#include <faiss/utils/distances.h>

#include "Backend.h"
#include "faiss_ext/GpuGMMClustering.h"
#include "faiss_ext/IndexIVFGMM.h"
#include "faiss_ext/IndexIVFRaBitQGMM.h"
#include "faiss_ext/coarse/centre.h"
#include "faiss_ext/coarse/coarse.h"
#include "faiss_ext/impl/errors.h"
#include "faiss_ext/impl/fit_mixture.h"
#include "faiss_ext/store/codes_alone.h"
#include "faiss_ext/store/list_storage.h"

namespace faiss_ext {

namespace {

void check_training(const faiss::IndexIVF& index, size_t n) {
    check_metric(index.metric_type);
    FAISS_THROW_IF_NOT_FMT(
            n >= index.nlist,
            "n = %zd, expected at least nlist = %zd",
            n,
            index.nlist);
    FAISS_THROW_IF_NOT_FMT(
            index.ntotal == 0,
            "ntotal = %zd, expected an empty index: training again would "
            "misplace its vectors",
            size_t(index.ntotal));
}

/// What training changes of a codec, as it was.
template <class IVF>
struct Codec {
    explicit Codec(const IVF&) {}
    void restore(IVF&) {}
};

template <>
struct Codec<faiss::IndexIVFPQ> {
    faiss::ProductQuantizer pq;
    explicit Codec(const faiss::IndexIVFPQ& index) : pq(index.pq) {}
    void restore(faiss::IndexIVFPQ& index) {
        std::swap(index.pq, pq);
    }
};

template <>
struct Codec<faiss::IndexIVFScalarQuantizer> {
    faiss::ScalarQuantizer sq;
    explicit Codec(const faiss::IndexIVFScalarQuantizer& index)
            : sq(index.sq) {}
    void restore(faiss::IndexIVFScalarQuantizer& index) {
        std::swap(index.sq, sq);
    }
};

} // namespace

template <class IVF>
void IndexIVFGMM<IVF>::train(idx_t n, const float* x) {
    check_training(*this, n);
    check_rows("x", n, this->d, x);
    check_storable("x", n, this->d, x);
    std::vector<float> directions; // the mixture lives on the unit sphere
    if (is_ip(*this)) {
        directions.assign(x, x + n * this->d);
        faiss::fvec_renorm_L2(this->d, n, directions.data());
    }
    train_by(
            [&](GpuGMMClustering& clustering, faiss::Index& means) {
                clustering.train(
                        n, directions.empty() ? x : directions.data(), means);
                directions = {};
            },
            n,
            x);
}

template <class IVF>
void IndexIVFGMM<IVF>::train_from(const gmm::VectorSource& source) {
    check_training(*this, source.n);
    FAISS_THROW_IF_NOT_FMT(
            source.d == size_t(this->d),
            "source: dimension %zu, expected d = %d",
            source.d,
            this->d);
    as_faiss_exception([&] {
        const size_t d = this->d;
        const Sample sample(source, kSampleRows, this->cp.seed);
        std::unique_ptr<gmm::VectorSource> directions;
        if (is_ip(*this)) {
            directions = gmm::mapped_source(
                    source, d, [d](size_t n, const float* x, float* out) {
                        std::copy_n(x, n * d, out);
                        faiss::fvec_renorm_L2(d, n, out);
                    });
        }
        train_by(
                [&](GpuGMMClustering& clustering, faiss::Index& means) {
                    clustering.train(directions ? *directions : source, means);
                },
                sample.n,
                sample.x.data());
    });
}

template <class IVF>
template <class Fit>
void IndexIVFGMM<IVF>::train_by(Fit&& fit, idx_t n, const float* x) {
    if (!has_vectors(*this)) {
        CellCodes::check_bits(code_bits);
    }
    GpuGMMClustering clustering(this->d, this->nlist, this->cp);
    clustering.covariance = covariance;
    clustering.verbose |= this->verbose;
    FAISS_THROW_IF_NOT_FMT(
            !gmm::has_matrices(covariance),
            "covariance = %s, expected isotropic, diagonal or tied_spherical",
            gmm::to_string(covariance));
    // The user's own centroids are kept, as FAISS does; those of an earlier
    // training are not.
    if (log_weights.empty() && this->quantizer && this->quantizer->is_trained &&
        size_t(this->quantizer->ntotal) == this->nlist) {
        clustering.centroids = quantizer_means(*this);
        if (is_ip(*this)) {
            shrink_into_unit_ball(this->d, clustering.centroids);
        }
        clustering.frozen_centroids = true;
    } else if (
            this->nlist >= clustering.kGroupedFrom && !gmm::cuda_available()) {
        // After a start from groups of means more iterations save 2 to 5 % of
        // the distances and take twice the time.
        clustering.niter = std::min(clustering.niter, 3);
        clustering.last_hard_niter = 1;
    }
    std::unique_ptr<faiss::Index> means = empty_quantizer(*this);
    fit(clustering, *means);
    PairCells partners;
    if (has_vectors(*this)) { // in time: an addition would wait for them
        partners.init(
                this->nlist,
                this->d,
                MeansView(*means, this->nlist).data(),
                kCellsAtFirst);
        partners.undivide();
    } else {
        std::vector<float> directions; // the mixture lives on the unit sphere
        if (is_ip(*this)) {
            directions.assign(x, x + n * this->d);
            faiss::fvec_renorm_L2(this->d, n, directions.data());
        }
        partners = fit_cells_in_training(
                *this,
                *means,
                this->nlist,
                n,
                directions.empty() ? x : directions.data());
    }
    Codec<IVF> codec_before(*this);
    faiss::Index* old = this->quantizer;
    this->quantizer = means.get();
    try {
        // finds the quantizer trained, and trains the codec
        IVF::train(n, x);
    } catch (...) {
        this->quantizer = old;
        codec_before.restore(*this);
        throw;
    }
    means.release();
    if (this->own_fields) {
        delete old;
    }
    this->own_fields = true;
    variances = std::move(clustering.variances);
    log_weights = std::move(clustering.log_weights);
    backend = std::move(clustering.backend);
    cells = std::move(partners);
    calibration = Calibration();
}

template void IndexIVFGMM<faiss::IndexIVFFlat>::train(idx_t, const float*);
template void IndexIVFGMM<faiss::IndexIVFFlat>::train_from(
        const gmm::VectorSource&);
template void IndexIVFGMM<faiss::IndexIVFPQ>::train(idx_t, const float*);
template void IndexIVFGMM<faiss::IndexIVFPQ>::train_from(
        const gmm::VectorSource&);
template void IndexIVFGMM<faiss::IndexIVFScalarQuantizer>::train(
        idx_t, const float*);
template void IndexIVFGMM<faiss::IndexIVFScalarQuantizer>::train_from(
        const gmm::VectorSource&);
template void IndexIVFGMM<IndexIVFIds>::train(idx_t, const float*);
template void IndexIVFGMM<IndexIVFIds>::train_from(const gmm::VectorSource&);

} // namespace faiss_ext
