// The interpreter's lock.
#pragma once

#include <torch/csrc/utils/pybind.h>

#include <optional>

#include "torch/check.h"

namespace fastmlp {

// Gives the interpreter's lock away for the life of the object, unless the work takes less time
// than that does: a few microseconds.
class LockReleased {
 public:
  explicit LockReleased(const Arguments& arguments, int64_t batches = 1) {
    constexpr int64_t kShort = 30000;  // multiplications
    int64_t work = 0;
    for (const at::Tensor& operand : arguments.operands) work += operand.numel();
    const int64_t rows = batches * arguments.batch();
    if (rows > kShort || rows * work > kShort) release_.emplace();
  }

 private:
  std::optional<pybind11::gil_scoped_release> release_;
};

}  // namespace fastmlp
