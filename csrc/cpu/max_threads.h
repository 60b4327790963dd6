// The threads that a call may use.
#pragma once

#include <ATen/Parallel.h>

#include "cpu/team.h"

namespace fastmlp::cpu {

inline int max_threads() {
  return at::in_parallel_region() ? 1 : most_members(at::get_num_threads());
}

}  // namespace fastmlp::cpu
