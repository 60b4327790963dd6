// The whole network forward, and backward, on the CPU.
#pragma once

#include <memory>

#include "cpu/kernels/table.h"
#include "network/network.h"

namespace fastmlp::cpu {

// Two steps, so that the caller's allocator provides the scratch memory: construct, then run with a
// buffer of workspace_elements().
template <typename T>
class BackwardPass;

template <typename T>
class ForwardPass {
 public:
  ForwardPass(const Forward<T>& problem, int max_threads);
  ~ForwardPass();
  int64_t workspace_elements() const;
  int64_t kept_elements() const;  // of problem.kept's panels, which run() needs; 0: none
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

// Brings the first layer's weight [out_features, in_features], contiguous, up to date.
template <typename T>
void flush(KeptWeight<T>& kept, const Layer<T>& layer, T* weight, int max_threads);

// GFLOP/s of multiply-adds on registers with the instruction set in use, on `threads` threads at
// once: what no product can exceed.
template <typename T>
double fma_peak(double seconds, int threads);

}  // namespace fastmlp::cpu
