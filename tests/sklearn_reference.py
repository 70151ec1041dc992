#!/usr/bin/env python3
"""Writes SklearnNumbers.h: mixtures that scikit-learn fits in 20 iterations.

    python3 -m venv venv && venv/bin/pip install scikit-learn
    venv/bin/python tests/sklearn_reference.py > tests/SklearnNumbers.h
"""

import os
import warnings

import numpy as np
import sklearn
from sklearn.mixture import GaussianMixture

N, D, K = 2000, 6, 4
VARIANCE, REG = 1000.0, 0.5

folder = os.path.join(os.path.dirname(__file__), "..", "bench", "data")
rows = np.fromfile(os.path.join(folder, "sift_sample_base.u8bin"), np.uint8,
                   offset=8).reshape(-1, 128)
x = rows[:N, :D].astype(np.float64)

print("// Written by sklearn_reference.py with scikit-learn %s."
      % sklearn.__version__)
print("#pragma once\n\n#include <vector>\n")
print("constexpr size_t kSklearnN = %d, kSklearnD = %d, kSklearnK = %d;"
      % (N, D, K))
print("constexpr double kSklearnVariance = %g, kSklearnReg = %g;\n"
      % (VARIANCE, REG))
print("/// Started at the first k vectors, variances of kSklearnVariance and "
      "equal\n/// weights.")
print("struct SklearnNumbers {\n    const char* kind;\n    double lower_bound;")
print("    std::vector<double> weights, means, covariances;\n};\n")
print("inline const SklearnNumbers kSklearn[] = {")
for kind in "full", "tied", "diag", "spherical":
    precisions = {"full": np.tile(np.eye(D), (K, 1, 1)), "tied": np.eye(D),
                  "diag": np.ones((K, D)), "spherical": np.ones(K)}[kind]
    model = GaussianMixture(
        K, covariance_type=kind, max_iter=20, tol=0, reg_covar=REG,
        means_init=x[:K], weights_init=np.full(K, 1 / K),
        precisions_init=precisions / VARIANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it did not converge
        model.fit(x)
    assert model.n_iter_ == 20
    print('        {"%s",\n         %.9g,' % (kind, model.lower_bound_))
    for values in model.weights_, model.means_, model.covariances_:
        flat = np.asarray(values).ravel()
        print("         {" + ",\n          ".join(
            "%.9g" % v for v in flat) + "},")
    print("        },")
print("};")
