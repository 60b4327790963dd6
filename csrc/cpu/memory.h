// Memory for what the operators return and for their scratch buffers.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace fastmlp {

// An uninitialised contiguous CPU tensor. Large ones come from a cache of blocks that earlier ones
// have left: memory fresh from the system costs a page fault for every 4 KiB, which takes longer
// than computing the gradients of a wide layer at a small batch. The cache and what is in use hold
// together no more than twice what has been in use at one time.
at::Tensor uninitialized(at::IntArrayRef sizes, at::ScalarType dtype);

// Bytes that wait in the cache.
int64_t cached_bytes();

// Gives them back to the system.
void empty_cache();

}  // namespace fastmlp
