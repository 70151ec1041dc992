#pragma once

#include "GaussianMixture.h"

const gmm::Covariance kAll[] = {
        gmm::Covariance::isotropic,
        gmm::Covariance::diagonal,
        gmm::Covariance::tied_spherical,
        gmm::Covariance::full,
        gmm::Covariance::tied};
