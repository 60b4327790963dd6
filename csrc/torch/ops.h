// The operators as C++ calls through the dispatcher: whatever mode or key is active sees them.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

#include "torch/check.h"

namespace fastmlp {

// As the schemas in ops.cpp name them.
at::Tensor mlp(const at::Tensor& input, at::TensorList operands, at::IntArrayRef program,
               at::ArrayRef<double> constants);

// output, statistics
std::tuple<at::Tensor, at::Tensor> mlp_train(const at::Tensor& input, at::TensorList operands,
                                             at::IntArrayRef program,
                                             at::ArrayRef<double> constants);

std::tuple<at::Tensor, at::Tensor> mlp_forward(const at::Tensor& input, at::TensorList operands,
                                               at::IntArrayRef program,
                                               at::ArrayRef<double> constants, const Needs& needs);

std::vector<at::Tensor> mlp_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                     at::TensorList operands, const at::Tensor& output,
                                     const at::Tensor& saved, at::IntArrayRef program,
                                     at::ArrayRef<double> constants, const Needs& foreseen,
                                     const Needs& needs);

// The statistics that mlp_forward has saved for such a network.
at::Tensor statistics(const Arguments& arguments, const at::Tensor& saved);

// mlp() without gradients and past the dispatcher, whose lists cost more than a small network: for
// plain tensors where no mode is active.
at::Tensor infer(const Arguments& arguments);

Program decode(at::IntArrayRef program, at::ArrayRef<double> constants);

}  // namespace fastmlp
