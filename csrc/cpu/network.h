// The whole network forward, and backward, on the CPU.
#pragma once

#include <memory>

#include "cpu/kernels.h"
#include "mlp.h"

namespace fastmlp::cpu {

// Two steps, so that the caller's allocator provides the scratch memory: construct, then run with a
// buffer of workspace_elements().
template <typename T>
class BackwardPass;

template <typename T>
class ForwardPass {
 public:
  // keeps_weight: the backward pass that follows will update the first layer's weight.
  ForwardPass(const Forward<T>& problem, int max_threads, bool keeps_weight = false);
  ~ForwardPass();
  int64_t workspace_elements() const;
  void run(T* workspace);

 private:
  friend BackwardPass<T>;
  struct State;
  std::unique_ptr<State> state_;
};

template <typename T>
class BackwardPass {
 public:
  // forward: the pass before, whose workspace is still there, of this very problem; null: gone.
  BackwardPass(const Backward<T>& problem, int max_threads,
               const ForwardPass<T>* forward = nullptr);
  ~BackwardPass();
  int64_t workspace_elements() const;
  void run(T* workspace);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// GFLOP/s of multiply-adds on registers with the instruction set in use, on `threads` threads at
// once: what no product can exceed.
template <typename T>
double fma_peak(double seconds, int threads);

}  // namespace fastmlp::cpu
