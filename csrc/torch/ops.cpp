// Every operator's schema on one screen, and its CPU implementation: allocation and the call of the
// kernels.
#include "torch/ops.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/library.h>

#include "torch/memory.h"
#include "torch/passes.h"
#include "torch/problem.h"

TORCH_LIBRARY(fastmlp, m) {
  // The network, differentiable. activations, slopes and tails hold one number a layer (mlp.h);
  // noise: what dropout multiplies by, for one layer after the other, without a gradient.
  m.def(
      "mlp(Tensor input, Tensor[] weights, Tensor?[] biases, int[] activations, float[] slopes, "
      "Tensor? noise=None, int[] tails=[]) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  // Beneath autograd. needs: which of input, weights…, biases… will want a gradient, 1 + 2·layers
  // of them, or an empty list for none; saved: one flat tensor of the activations that backward
  // reads for them.
  m.def(
      "mlp_forward(Tensor input, Tensor[] weights, Tensor?[] biases, int[] activations, float[] "
      "slopes, bool[] needs, Tensor? noise=None, int[] tails=[])"
      " -> (Tensor output, Tensor saved)",
      {at::Tag::pt2_compliant_tag});
  // The gradients that needs tells, in that order. kept: what mlp_forward was given as needs, and
  // all that needs may ask for.
  m.def(
      "mlp_backward(Tensor grad_output, Tensor input, Tensor[] weights, Tensor output, Tensor "
      "saved, int[] activations,"
      " float[] slopes, bool[] kept, bool[] needs, Tensor? noise=None, int[] tails=[]) -> Tensor[]",
      {at::Tag::pt2_compliant_tag});
}

namespace fastmlp {

namespace {

using OptionalTensor = std::optional<at::Tensor>;

OptionalTensor as_optional(const at::Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

}  // namespace

at::Tensor mlp(const at::Tensor& input, at::TensorList weights, const OptionalTensors& biases,
               at::IntArrayRef activations, at::ArrayRef<double> slopes, const at::Tensor& noise,
               at::IntArrayRef tails) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fastmlp::mlp", "")
          .typed<at::Tensor(const at::Tensor&, at::TensorList, const OptionalTensors&,
                            at::IntArrayRef, at::ArrayRef<double>, const OptionalTensor&,
                            at::IntArrayRef)>();
  return op.call(input, weights, biases, activations, slopes, as_optional(noise), tails);
}

static c10::List<bool> as_list(const std::vector<bool>& flags) {
  c10::List<bool> list;
  list.reserve(flags.size());
  for (const bool flag : flags) list.push_back(flag);
  return list;
}

std::tuple<at::Tensor, at::Tensor> mlp_forward(const at::Tensor& input, at::TensorList weights,
                                               const OptionalTensors& biases,
                                               at::IntArrayRef activations,
                                               at::ArrayRef<double> slopes,
                                               const std::vector<bool>& needs,
                                               const at::Tensor& noise, at::IntArrayRef tails) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fastmlp::mlp_forward", "")
          .typed<std::tuple<at::Tensor, at::Tensor>(
              const at::Tensor&, at::TensorList, const OptionalTensors&, at::IntArrayRef,
              at::ArrayRef<double>, c10::List<bool>, const OptionalTensor&, at::IntArrayRef)>();
  return op.call(input, weights, biases, activations, slopes, as_list(needs), as_optional(noise),
                 tails);
}

std::vector<at::Tensor> mlp_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                     at::TensorList weights, const at::Tensor& output,
                                     const at::Tensor& saved, at::IntArrayRef activations,
                                     at::ArrayRef<double> slopes, const std::vector<bool>& kept,
                                     const std::vector<bool>& needs, const at::Tensor& noise,
                                     at::IntArrayRef tails) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fastmlp::mlp_backward", "")
          .typed<std::vector<at::Tensor>(const at::Tensor&, const at::Tensor&, at::TensorList,
                                         const at::Tensor&, const at::Tensor&, at::IntArrayRef,
                                         at::ArrayRef<double>, c10::List<bool>, c10::List<bool>,
                                         const OptionalTensor&, at::IntArrayRef)>();
  return op.call(grad_output, input, weights, output, saved, activations, slopes, as_list(kept),
                 as_list(needs), as_optional(noise), tails);
}

namespace {

std::tuple<at::Tensor, at::Tensor> run_forward(const Arguments& arguments, const Needs& needs) {
  check(arguments);
  check_needs(arguments.weights.size(), needs);
  const at::Tensor& input = arguments.input;
  at::DimVector sizes(input.sizes());
  sizes.back() = arguments.weights.back().size(0);
  const at::Tensor output = uninitialized(sizes, input.scalar_type());
  const SavedLayout layout = saved_layout(arguments, needs);
  const at::Tensor saved = uninitialized({layout.elements}, input.scalar_type());
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    Operands operands;
    Forward<T> problem = make_forward<T>(arguments, operands);
    place_saved<T>(problem, layout, saved_data<T>(saved), output.mutable_data_ptr<T>());
    cpu::ForwardPass<T> pass(problem, max_threads());
    run_pass(pass, input.scalar_type());
  };
  input.scalar_type() == at::kFloat ? run(float()) : run(double());
  return {output, saved};
}

std::tuple<at::Tensor, at::Tensor> mlp_forward_cpu(
    const at::Tensor& input, at::TensorList weights, const OptionalTensors& biases,
    at::IntArrayRef activations, at::ArrayRef<double> slopes, c10::List<bool> needs,
    const OptionalTensor& noise, at::IntArrayRef tails) {
  const std::vector<std::optional<at::Tensor>> bias_list(biases.begin(), biases.end());
  return run_forward(
      {input, weights, bias_list, activations, slopes, noise.value_or(at::Tensor()), tails},
      Needs(needs.begin(), needs.end()));
}

std::vector<at::Tensor> mlp_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                         at::TensorList weights, const at::Tensor& output,
                                         const at::Tensor& saved, at::IntArrayRef activations,
                                         at::ArrayRef<double> slopes, c10::List<bool> kept_list,
                                         c10::List<bool> need_list, const OptionalTensor& noise,
                                         at::IntArrayRef tails) {
  const size_t layers = weights.size();
  const std::vector<std::optional<at::Tensor>> no_biases(layers);
  const Arguments arguments{
      input, weights, no_biases, activations, slopes, noise.value_or(at::Tensor()), tails};
  check(arguments);
  const Needs kept(kept_list.begin(), kept_list.end()), needs(need_list.begin(), need_list.end());
  check_backward(arguments, grad_output, output, saved, kept, needs);
  if (first_layer(layers, needs) == static_cast<int64_t>(layers)) return {};
  const at::Tensor grad_rows = as_rows(grad_output), output_rows = as_rows(output);
  const SavedLayout layout = saved_layout(arguments, kept);
  std::vector<at::Tensor> gradients;
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    Operands operands;
    Backward<T> problem;
    problem.forward = make_forward<T>(arguments, operands);
    // Backward only reads them.
    place_saved<T>(problem.forward, layout, saved_data<T>(saved),
                   const_cast<T*>(output_rows.const_data_ptr<T>()));
    problem.grad_output = grad_rows.const_data_ptr<T>();
    problem.grad_output_stride = grad_rows.stride(0);
    problem.gradients.resize(layers);
    const auto allocate = [&](size_t i, at::IntArrayRef sizes) -> T* {
      if (!needs[i]) return nullptr;
      gradients.push_back(uninitialized(sizes, input.scalar_type()));
      return gradients.back().mutable_data_ptr<T>();
    };
    problem.grad_input = allocate(0, input.sizes());
    for (size_t l = 0; l < layers; ++l)
      problem.gradients[l].weight = allocate(1 + l, weights[l].sizes());
    for (size_t l = 0; l < layers; ++l)
      problem.gradients[l].bias = allocate(1 + layers + l, weights[l].sizes().slice(0, 1));
    cpu::BackwardPass<T> pass(problem, max_threads());
    run_pass(pass, input.scalar_type());
  };
  input.scalar_type() == at::kFloat ? run(float()) : run(double());
  return gradients;
}

at::Tensor mlp_without_gradient(const at::Tensor& input, at::TensorList weights,
                                const OptionalTensors& biases, at::IntArrayRef activations,
                                at::ArrayRef<double> slopes, const OptionalTensor& noise,
                                at::IntArrayRef tails) {
  return std::get<0>(mlp_forward(input, weights, biases, activations, slopes, {},
                                 noise.value_or(at::Tensor()), tails));
}

}  // namespace

at::Tensor infer(const Arguments& arguments) { return std::get<0>(run_forward(arguments, {})); }

}  // namespace fastmlp

TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("mlp_forward", fastmlp::mlp_forward_cpu);
  m.impl("mlp_backward", fastmlp::mlp_backward_cpu);
}

TORCH_LIBRARY_IMPL(fastmlp, CompositeExplicitAutograd, m) {
  m.impl("mlp", fastmlp::mlp_without_gradient);
}
