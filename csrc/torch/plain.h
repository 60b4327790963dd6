// The network as torch's own operations.
#pragma once

#include <ATen/core/Tensor.h>

#include "torch/check.h"

namespace fastmlp {

// [..., out_features]; differentiable any number of times.
at::Tensor plain(const Arguments& arguments);

}  // namespace fastmlp
