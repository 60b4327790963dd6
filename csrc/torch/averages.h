// Running averages as tensors.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include "network/averages.h"
#include "torch/check.h"

namespace fastmlp {

// What torch.nn.BatchNorm1d keeps. Of the network's dtype, contiguous, on the CPU.
struct RunningAverage {
  int64_t layer = 0;
  at::Tensor mean, variance;  // [features]
  at::Tensor batches;         // int64, of one element; undefined: nobody counts
  double momentum = 0;        // as of AveragePlaces

  AveragePlaces lowered() const;
  // As torch's operators do: of the count alone.
  void bump_version() const;
};

using Averages = c10::SmallVector<RunningAverage, 4>;

// Throws where the program has a batch norm and there are less than two rows, as torch does.
void check_rows(const Program& program, int64_t rows, int64_t features);

// What mlp_train gives as statistics, of so many rows, goes into the averages.
void add_batch(const Averages& averages, const Arguments& arguments, const at::Tensor& statistics);

}  // namespace fastmlp
