// How the operators and the training step run a pass over a network.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "cpu/pass/network.h"
#include "torch/memory.h"
#include "network/network.h"
#include "torch/problem.h"

namespace fastmlp {

inline int max_threads() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

// What is kept of the layers lies one after the other in `saved`.
template <typename T>
void place_saved(Forward<T>& problem, const SavedLayout& layout, T* saved, T* output) {
  for (size_t l = 0; l < problem.layers.size(); ++l) {
    if (layout.outputs[l] >= 0) problem.layers[l].output = saved + layout.outputs[l];
    if (layout.sums[l] >= 0) problem.layers[l].sums = saved + layout.sums[l];
    if (layout.activated[l] >= 0) problem.layers[l].activated = saved + layout.activated[l];
  }
  problem.layers.back().output = output;
}

template <typename T>
T* saved_data(const at::Tensor& saved) {
  return saved.numel() > 0 ? static_cast<T*>(saved.data_ptr()) : nullptr;
}

// Returns the workspace, for a pass that is still to be asked for something.
template <template <typename> class Pass, typename T>
at::Tensor run_pass(Pass<T>& pass, at::ScalarType dtype) {
  const int64_t elements = pass.workspace_elements();
  at::Tensor workspace = elements > 0 ? uninitialized({elements}, dtype) : at::Tensor();
  pass.run(elements > 0 ? workspace.mutable_data_ptr<T>() : nullptr);
  return workspace;
}

}  // namespace fastmlp
