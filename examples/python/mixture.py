"""The mixture alone, chosen by BIC as with scikit-learn."""

import numpy as np

from faiss_ext import GaussianMixture

rng = np.random.default_rng(0)
centers = 4 * rng.normal(size=(5, 8))
x = centers[rng.integers(5, size=4000)] + rng.normal(size=(4000, 8))

fits = [GaussianMixture(k, n_init=3, random_state=0).fit(x) for k in (2, 5, 9)]
best = min(fits, key=lambda m: m.bic(x))
print([round(m.bic(x)) for m in fits], "components:", best.n_components)
assert best.n_components == 5
