// A whole training step: forward, loss, backward, update.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <optional>

#include "torch/averages.h"
#include "torch/check.h"

namespace fastmlp {

struct LossArguments {
  int kind = 0;  // the first of its name; the target's dtype tells which
  Reduction reduction = Reduction::mean;
  int64_t ignore_index = -100;
  double options[kMostLossOptions] = {};
  std::optional<at::Tensor> operands[kMostLossOperands];  // variances: as many as targets
};

// An optimizer's options for one parameter, and the tensors of its state.
struct ParameterUpdate {
  int operand = 0;
  Update update;  // the pointers and the number of elements are filled in by the step
  at::Tensor states[kMostStates], scalars[kMostScalars];  // undefined where there are none
};

using ParameterUpdates = c10::SmallVector<ParameterUpdate, 16>;

struct StepResult {
  at::Tensor loss;       // of no dimensions
  int64_t correct = -1;  // … where the target is no class
};

// Each throws what a step would, whatever its batch.
void check_loss(const LossArguments& loss);
void check_parameters(at::TensorList operands, const ParameterUpdates& updates,
                      const Averages& averages);

// Modifies the parameters and their optimizer's state in place and counts up their versions; the
// scalars, in `updates` alone. Throws before it has modified anything, also where two of these
// share memory. Any other operand may: the numbers are those of before the step. Dropout is drawn.
StepResult train_step(const Arguments& arguments, const at::Tensor& target,
                      const LossArguments& loss, ParameterUpdates& updates,
                      const Averages& averages, double max_grad_norm);

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
// and right predictions; `done` counts the finished steps even where one throws. `updates` move on
// with the steps.
void train_steps(const Arguments& arguments, const Batches& batches, const LossArguments& loss,
                 ParameterUpdates& updates, const Averages& averages, double max_grad_norm,
                 double* losses, int64_t* correct, int64_t& done);

}  // namespace fastmlp
