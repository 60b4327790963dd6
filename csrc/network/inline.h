// What formulas and kernels ask of the compiler.
#pragma once

#define FASTMLP_PRAGMA(x) _Pragma(#x)

// Full unrolling is what lets GCC keep an array of accumulators in registers: without it a tile of
// 8×3 vectors lives on the stack and runs at less than half the speed (76 instead of 178 GFLOP/s).
#define FASTMLP_UNROLL FASTMLP_PRAGMA(GCC unroll 32)
#define FASTMLP_INLINE inline __attribute__((always_inline))
#define FASTMLP_INLINED __attribute__((always_inline))  // of a lambda, after its parameters
