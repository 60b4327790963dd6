// Begin and end of a region whose functions are compiled for one instruction set.
//
// Flags such as -mavx512f apply to a whole file, and then inline functions of the standard library
// and of torch that the file instantiates are compiled for AVX-512 too; the linker may keep that
// copy for everybody: an illegal instruction on an older CPU. A region in the source limits the
// instruction set to the functions between its two ends, so include every header, <immintrin.h>
// among them, before a region begins.
#pragma once

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FASTMLP_X86 1
#include <immintrin.h>
#endif

#define FASTMLP_PRAGMA(x) _Pragma(#x)

#if defined(__clang__)
#define FASTMLP_TARGET_BEGIN(features) \
  FASTMLP_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define FASTMLP_TARGET_END FASTMLP_PRAGMA(clang attribute pop)
#else
#define FASTMLP_TARGET_BEGIN(features) \
  FASTMLP_PRAGMA(GCC push_options)     \
  FASTMLP_PRAGMA(GCC target(features))
#define FASTMLP_TARGET_END FASTMLP_PRAGMA(GCC pop_options)
#endif

// Full unrolling is what lets GCC keep an array of accumulators in registers: without it a tile of
// 8×3 vectors lives on the stack and runs at less than half the speed (76 instead of 178 GFLOP/s).
#define FASTMLP_UNROLL FASTMLP_PRAGMA(GCC unroll 32)
#define FASTMLP_INLINE inline __attribute__((always_inline))
#define FASTMLP_INLINED __attribute__((always_inline))  // of a lambda, after its parameters
