// Whole training steps on the CPU.
#pragma once

#include "backend.h"
#include "cpu/pass/machine.h"

namespace fastmlp::cpu {

// See Backend::run_steps.
template <typename T>
void run_steps(const StepArguments& arguments, StepFeed& feed, const Machine<T>& machine);

}  // namespace fastmlp::cpu
