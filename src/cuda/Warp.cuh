#pragma once

#ifdef __CUDACC__
#include "Ptx.cuh"
#else
#include "HostWarp.h" // of the tests: a warp on the CPU
#endif
