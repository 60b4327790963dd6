// The operators as C++ calls through the dispatcher: whatever mode or key is active sees them.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Optional.h>

#include <tuple>
#include <vector>

namespace fastmlp {

using OptionalTensors = c10::List<std::optional<at::Tensor>>;

// noise: as Arguments of problem.h has it, undefined for none.
at::Tensor mlp(const at::Tensor& input, at::TensorList weights, const OptionalTensors& biases,
               at::IntArrayRef activations, at::ArrayRef<double> slopes, const at::Tensor& noise,
               at::IntArrayRef tails);

std::tuple<at::Tensor, at::Tensor> mlp_forward(const at::Tensor& input, at::TensorList weights,
                                               const OptionalTensors& biases,
                                               at::IntArrayRef activations,
                                               at::ArrayRef<double> slopes,
                                               const std::vector<bool>& needs,
                                               const at::Tensor& noise, at::IntArrayRef tails);

std::vector<at::Tensor> mlp_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                     at::TensorList weights, const at::Tensor& output,
                                     const at::Tensor& saved, at::IntArrayRef activations,
                                     at::ArrayRef<double> slopes, const std::vector<bool>& kept,
                                     const std::vector<bool>& needs, const at::Tensor& noise,
                                     at::IntArrayRef tails);

// mlp() without gradients and past the dispatcher, whose lists cost more than a small network: for
// plain CPU tensors where no mode is active.
struct Arguments;
at::Tensor infer(const Arguments& arguments);

}  // namespace fastmlp
