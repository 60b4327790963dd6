// The threads that a call may use.
#pragma once

#include <ATen/Parallel.h>

namespace fastmlp::cpu {

inline int max_threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

}  // namespace fastmlp::cpu
