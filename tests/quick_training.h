#pragma once

#include <faiss/IndexIVFPQ.h>
#include <faiss/IndexIVFPQFastScan.h>

#include "faiss_ext/impl/convert.h"

/// Makes product quantizers train in a moment: they would take most of a
/// test's time.
inline void train_quickly(faiss::Index* index) {
    index = *faiss_ext::unwrap(&index);
    faiss::ProductQuantizer* pq = nullptr;
    if (auto ivf = dynamic_cast<faiss::IndexIVFPQ*>(index)) {
        pq = &ivf->pq;
        ivf->do_polysemous_training = false;
    } else if (auto fs = dynamic_cast<faiss::IndexIVFPQFastScan*>(index)) {
        pq = &fs->pq;
    }
    if (pq) {
        pq->cp.niter = 4;
        pq->cp.max_points_per_centroid = 40;
    }
}
