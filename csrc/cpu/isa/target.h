// Begin and end of a region whose functions are compiled for one instruction set.
//
// Flags such as -mavx512f apply to a whole file, and then inline functions of the standard library
// and of torch that the file instantiates are compiled for AVX-512 too; the linker may keep that
// copy for everybody: an illegal instruction on an older CPU. A region in the source limits the
// instruction set to the functions between its two ends, so include every header, <immintrin.h>
// among them, before a region begins.
#pragma once

#include "network/inline.h"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define FASTMLP_X86 1
#include <immintrin.h>
#endif

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
