// Whole training steps on the CPU.
#pragma once

#include <cstdint>

#include "backend.h"

namespace fastmlp::cpu {

// See Backend::run_steps.
template <typename T>
void run_steps(const StepArguments& arguments, StepFeed& feed, int64_t max_threads);

}  // namespace fastmlp::cpu
