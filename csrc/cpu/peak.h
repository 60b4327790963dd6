// What no product can exceed.
#pragma once

namespace fastmlp::cpu {

// GFLOP/s of multiply-adds on registers with the instruction set in use, on `threads` threads at
// once.
template <typename T>
double fma_peak(double seconds, int threads);

}  // namespace fastmlp::cpu
