// The first layer's input: dense, or mostly one value; the one place that knows which.
#pragma once

#include "cpu/product/sparse/sparse_input.h"

namespace fastmlp::cpu {

// Lives as long as one input: from forward to the end of backward in a training step.
template <typename T>
class FirstLayer {
 public:
  FirstLayer(const SparsePlan<T>& plan, Matrix<T> input) : plan_(&plan), input_(plan, input) {}
  // Of a step that keeps the weight's panels.
  void keep(PanelWeight<T>* panel_weight) { panel_weight_ = panel_weight; }

  const SparsePlan<T>& plan() const { return *plan_; }
  SparseInput<T>& input() { return input_; }
  const SparseInput<T>& input() const { return input_; }
  PanelWeight<T>* panel_weight() const { return panel_weight_; }

  // Of the workspace: shared by all members.
  int64_t elements() const { return input_.shared_elements(); }
  bool looks_at_input() const { return input_.likely(); }
  // Once the input has been looked at.
  bool is_sparse() const { return input_.likely() && input_.forward_pays(); }

 private:
  const SparsePlan<T>* plan_;
  SparseInput<T> input_;
  PanelWeight<T>* panel_weight_ = nullptr;
};

}  // namespace fastmlp::cpu
