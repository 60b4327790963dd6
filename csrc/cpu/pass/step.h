// Whole training steps on the CPU.
#pragma once

#include "backend.h"
#include "cpu/pass/plans.h"

namespace fastmlp::cpu {

template <typename T>
class Steps final : public StepSequence {
 public:
  Steps(StepArguments arguments, int64_t max_threads);
  ~Steps() override;

  LossResult step(StepBatch& batch) override;

 private:
  // Plans for batches of so many rows, and memory for them.
  void plan(int64_t rows, int64_t input_stride);
  bool clips() const { return arguments_.max_grad_norm > 0; }
  bool adds_to_first_weight() const { return spec_.layers[0].weight_gradient == Gradient::added; }
  PanelWeight<T>* panel_weight(const FirstLayer<T>& first);
  T* workspace(int64_t elements);

  const Machine<T> machine_;
  NetworkSpec spec_;  // of the present plans
  NetworkMemory memory_;
  std::shared_ptr<const ForwardPlan<T>> forward_;
  std::shared_ptr<const BackwardPlan<T>> backward_, sparse_backward_;
  at::Tensor block_, panels_block_;  // all that the steps need
  at::Tensor larger_;                // for a sparse input, which is found when it is looked at
  T* workspace_ = nullptr;
  int64_t workspace_elements_ = 0;
  PanelWeight<T> panels_;
};

}  // namespace fastmlp::cpu
