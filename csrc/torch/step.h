// A whole training step: forward, loss, backward, update.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "torch/problem.h"
#include "network/training.h"

namespace fastmlp {

struct LossOptions {
  LossKind kind = LossKind::cross_entropy;  // or that of probabilities, by the target's dtype
  bool mean = true;
  int64_t ignore_index = -100;
  double label_smoothing = 0;
  std::optional<at::Tensor> weight, positive_weight;
};

// An optimizer's options for one parameter, and the tensors of its state.
struct ParameterUpdate {
  size_t operand = 0;        // which of weights…, biases…
  Update<double> options{};  // the pointers and the number of elements are filled in by the step
  at::Tensor momentum, square, square_max;  // undefined where there are none
  at::Tensor step;                          // likewise; counted up by the caller
};

struct StepResult {
  at::Tensor loss;  // of no dimensions
  int64_t correct;  // -1 where the target is no class
};

// Modifies the parameters and their optimizer's state in place and counts up their versions. Throws
// before it has modified anything, also where two of these share memory. Any other operand may: the
// numbers are those of before the step.
StepResult train_step(const Arguments& arguments, const at::Tensor& target, const LossOptions& loss,
                      const std::vector<ParameterUpdate>& updates, double max_grad_norm);

// Rows of a data set in the order in which they are visited.
struct Batches {
  at::Tensor inputs;            // [rows, features] of the parameters' dtype, or uint8
  at::Tensor targets;           // [rows, ...]
  at::Tensor order;             // int64 [visited]
  int64_t size = 1;             // rows of a batch; the last may have fewer
  double scale = 1, shift = 0;  // of uint8 inputs: scale·x + shift
  at::Tensor buffer;            // [size, features] of the parameters' dtype, overwritten

  int64_t count() const;
};

// One step after the other over all batches, with dropout drawn for each. Writes each step's loss
// and right predictions and returns; `done` counts the finished steps even where one throws.
// `updates` move on with the steps.
void train_steps(const Arguments& arguments, at::ArrayRef<double> dropouts, const Batches& batches,
                 const LossOptions& loss, std::vector<ParameterUpdate>& updates,
                 double max_grad_norm, double* losses, int64_t* correct, int64_t& done);

}  // namespace fastmlp
