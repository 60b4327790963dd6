// The CPU behind the seam.
#include "backend.h"

#include <ATen/Context.h>

#include "cpu/isa/float_state.h"
#include "cpu/max_threads.h"
#include "cpu/memory.h"
#include "cpu/noise.h"
#include "cpu/pass/loss.h"
#include "cpu/pass/plans.h"
#include "cpu/pass/step.h"
#include "cpu/pass/workspace.h"

namespace fastmlp::cpu {
namespace {

template <typename T>
Matrix<T> input_of(const NetworkSpec& spec, const NetworkMemory& memory) {
  return {static_cast<const T*>(memory.input), spec.head.input_stride, 1};
}

// As the caller finds it. The library's products depend on more than the input, begin as many
// threads as torch has been told, and compute in those threads' own floating-point state: none
// where torch is asked for deterministic algorithms, a CPU quota grants fewer, or the caller has
// set another state.
template <typename T>
Machine<T> machine() {
  const int threads = max_threads();
  const bool may_use_library = library_allowed() &&
                               !at::globalContext().deterministicAlgorithms() &&
                               (at::in_parallel_region() || threads >= at::get_num_threads()) &&
                               FloatState::of_this_thread().is_usual();
  return {threads, may_use_library};
}

class CpuBackend final : public Backend {
 public:
  bool takes(at::ScalarType dtype) const override {
    return dtype == at::kFloat || dtype == at::kDouble;
  }

  at::Tensor allocate(at::IntArrayRef sizes, at::ScalarType dtype) const override {
    return uninitialized(sizes, dtype);
  }

  void forward(const NetworkSpec& spec, const NetworkMemory& memory) const override {
    dispatch(spec.head.dtype, [&](auto zero) {
      using T = decltype(zero);
      const auto plan = forward_plan<T>(spec, machine<T>());
      FirstLayer<T> first(plan->sparse(), input_of<T>(spec, memory));
      Workspace<T> workspace(plan->workspace_elements() + first.elements());
      plan->run(memory, first, workspace.data());
    });
  }

  void backward(const NetworkSpec& spec, const NetworkMemory& memory) const override {
    dispatch(spec.head.dtype, [&](auto zero) {
      using T = decltype(zero);
      const Machine<T> present = machine<T>();
      auto plan = backward_plan<T>(spec, present, false);
      const std::shared_ptr<const BackwardPlan<T>> dense = plan;  // whose sparse plan `first` reads
      FirstLayer<T> first(dense->sparse(), input_of<T>(spec, memory));
      if (first.looks_at_input()) plan = backward_plan<T>(spec, present, true);
      Workspace<T> workspace(plan->workspace_elements() + first.elements());
      plan->run(memory, first, false, workspace.data());
    });
  }

  void run_steps(const StepArguments& arguments, StepFeed& feed) const override {
    dispatch(arguments.network.head.dtype,
             [&](auto zero) { cpu::run_steps(arguments, feed, machine<decltype(zero)>()); });
  }

  void gather(Dtype dtype, const void* from, int64_t stride, const int64_t* rows, int64_t count,
              int64_t features, void* to) const override {
    const int64_t size = size_of(dtype);
    cpu::gather(from, stride * size, rows, count, features * size, to, max_threads());
  }

  void gather_bytes(Dtype dtype, const uint8_t* from, int64_t stride, const int64_t* rows,
                    int64_t count, int64_t features, double scale, double shift,
                    void* to) const override {
    dispatch(dtype, [&](auto zero) {
      using T = decltype(zero);
      cpu::gather<T>(from, stride, rows, count, features, static_cast<T>(scale),
                     static_cast<T>(shift), static_cast<T*>(to), max_threads());
    });
  }

  void draw_noise(Dtype dtype, double probability, double value, int64_t elements,
                  void* out) const override {
    dispatch(dtype, [&](auto zero) {
      using T = decltype(zero);
      fill_noise(probability, static_cast<T>(value), elements, static_cast<T*>(out));
    });
  }
};

const bool registered = [] {
  static const CpuBackend backend;
  register_backend(c10::DeviceType::CPU, &backend);
  return true;
}();

}  // namespace
}  // namespace fastmlp::cpu
