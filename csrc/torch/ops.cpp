// Every operator's schema on one screen, and its implementation for any backend: checks, allocation
// and the backend's call.
#include "torch/ops.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include "network/saved.h"
#include "torch/lower.h"

TORCH_LIBRARY(fastmlp, m) {
  // The network that program, constants and operands are (network/program.h), differentiable.
  m.def("mlp(Tensor input, Tensor[] operands, int[] program, float[] constants) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  // … and what the batch norms in it have found: each layer's means, and its variances.
  m.def(
      "mlp_train(Tensor input, Tensor[] operands, int[] program, float[] constants)"
      " -> (Tensor output, Tensor statistics)",
      {at::Tag::pt2_compliant_tag});
  // Beneath autograd. needs: which of input, operands… will want a gradient, or an empty list for
  // none; saved: one flat tensor of the statistics, and of the activations that backward reads for
  // these.
  m.def(
      "mlp_forward(Tensor input, Tensor[] operands, int[] program, float[] constants, bool[] needs)"
      " -> (Tensor output, Tensor saved)",
      {at::Tag::pt2_compliant_tag});
  // The gradients that needs tells, in that order. foreseen: what mlp_forward was given as needs,
  // and all that needs may ask for.
  m.def(
      "mlp_backward(Tensor grad_output, Tensor input, Tensor[] operands, Tensor output, Tensor "
      "saved, int[] program, float[] constants, bool[] foreseen, bool[] needs) -> Tensor[]",
      {at::Tag::pt2_compliant_tag});
}

namespace fastmlp {
namespace {

c10::List<bool> as_list(const Needs& flags) {
  c10::List<bool> list;
  list.reserve(flags.size());
  for (const bool flag : flags) list.push_back(flag);
  return list;
}

Needs as_needs(const c10::List<bool>& list) {
  Needs needs;
  for (const bool flag : list) needs.push_back(flag);
  return needs;
}

}  // namespace

Program decode(at::IntArrayRef program, at::ArrayRef<double> constants) {
  return decode(program.data(), static_cast<int64_t>(program.size()), constants.data(),
                static_cast<int64_t>(constants.size()));
}

at::Tensor mlp(const at::Tensor& input, at::TensorList operands, at::IntArrayRef program,
               at::ArrayRef<double> constants) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastmlp::mlp", "")
                             .typed<at::Tensor(const at::Tensor&, at::TensorList, at::IntArrayRef,
                                               at::ArrayRef<double>)>();
  return op.call(input, operands, program, constants);
}

std::tuple<at::Tensor, at::Tensor> mlp_train(const at::Tensor& input, at::TensorList operands,
                                             at::IntArrayRef program,
                                             at::ArrayRef<double> constants) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fastmlp::mlp_train", "")
          .typed<std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, at::TensorList,
                                                    at::IntArrayRef, at::ArrayRef<double>)>();
  return op.call(input, operands, program, constants);
}

std::tuple<at::Tensor, at::Tensor> mlp_forward(const at::Tensor& input, at::TensorList operands,
                                               at::IntArrayRef program,
                                               at::ArrayRef<double> constants, const Needs& needs) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("fastmlp::mlp_forward", "")
                             .typed<std::tuple<at::Tensor, at::Tensor>(
                                 const at::Tensor&, at::TensorList, at::IntArrayRef,
                                 at::ArrayRef<double>, c10::List<bool>)>();
  return op.call(input, operands, program, constants, as_list(needs));
}

std::vector<at::Tensor> mlp_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                     at::TensorList operands, const at::Tensor& output,
                                     const at::Tensor& saved, at::IntArrayRef program,
                                     at::ArrayRef<double> constants, const Needs& foreseen,
                                     const Needs& needs) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("fastmlp::mlp_backward", "")
          .typed<std::vector<at::Tensor>(const at::Tensor&, const at::Tensor&, at::TensorList,
                                         const at::Tensor&, const at::Tensor&, at::IntArrayRef,
                                         at::ArrayRef<double>, c10::List<bool>, c10::List<bool>)>();
  return op.call(grad_output, input, operands, output, saved, program, constants, as_list(foreseen),
                 as_list(needs));
}

namespace {

struct Outputs {
  at::Tensor output, saved;
};

// `saved` is undefined where nothing is.
Outputs run_forward(const Backend& backend, const Arguments& arguments, const Needs& needs) {
  Lowered lowered = lower(arguments);
  set_gradients(arguments.program, needs, lowered.spec);
  const at::ScalarType dtype = arguments.input.scalar_type();
  at::DimVector sizes(arguments.input.sizes());
  sizes.back() = lowered.spec.layers.back().out_features;
  Outputs result{backend.allocate(sizes, dtype), {}};
  if (!needs.empty()) {
    keep_for_gradients(lowered.spec);
  } else {
    lowered.spec.layers.back().keeps_output = true;
  }
  if (const int64_t elements = saved_elements(lowered.spec); elements > 0 || !needs.empty()) {
    result.saved = backend.allocate({elements}, dtype);
    place_saved(lowered.spec, result.saved.mutable_data_ptr(), lowered.memory);
  }
  lowered.memory.layers.back().output = result.output.mutable_data_ptr();
  backend.forward(lowered.spec, lowered.memory);
  return result;
}

std::tuple<at::Tensor, at::Tensor> forward_operator(const at::Tensor& input,
                                                    at::TensorList operands,
                                                    at::IntArrayRef numbers,
                                                    at::ArrayRef<double> constants,
                                                    c10::List<bool> need_list) {
  const Program program = decode(numbers, constants);
  const Arguments arguments{input, operands, program};
  const Backend& backend = check(arguments);
  const Needs needs = as_needs(need_list);
  check_needs(arguments, needs);
  Outputs result = run_forward(backend, arguments, needs);
  if (!result.saved.defined()) result.saved = backend.allocate({0}, input.scalar_type());
  return {result.output, result.saved};
}

std::vector<at::Tensor> backward_operator(const at::Tensor& grad_output, const at::Tensor& input,
                                          at::TensorList operands, const at::Tensor& output,
                                          const at::Tensor& saved, at::IntArrayRef numbers,
                                          at::ArrayRef<double> constants,
                                          c10::List<bool> foreseen_list,
                                          c10::List<bool> need_list) {
  const Program program = decode(numbers, constants);
  const Arguments arguments{input, operands, program};
  const Backend& backend = check(arguments);
  const Needs foreseen = as_needs(foreseen_list), needs = as_needs(need_list);
  check_needs(arguments, foreseen);
  check_needs(arguments, needs);
  Lowered lowered = lower(arguments);
  NetworkSpec& spec = lowered.spec;
  // What lies where in `saved` depends on what forward foresaw, the rest on what is wanted now.
  set_gradients(program, foreseen, spec);
  if (!foreseen.empty()) keep_for_gradients(spec);
  check_backward(arguments, grad_output, output, saved, saved_elements(spec), foreseen, needs);
  place_saved(spec, const_cast<void*>(saved.const_data_ptr()), lowered.memory);  // only read
  for (LayerSpec& layer : spec.layers) layer.weight_gradient = layer.bias_gradient = Gradient::none;
  spec.head.input_gradient = 0;
  set_gradients(program, needs, spec);
  if (spec.first_trained() == spec.layers.size()) return {};

  const at::Tensor grad_rows = as_rows(grad_output), output_rows = as_rows(output);
  spec.head.grad_output_stride = grad_rows.stride(0);
  lowered.memory.grad_output = grad_rows.const_data_ptr();
  lowered.memory.layers.back().output = const_cast<void*>(output_rows.const_data_ptr());
  // In the order of needs, which is that of the operands.
  std::vector<at::Tensor> gradients;
  const auto allocate = [&](int64_t place, const at::Tensor& like) -> void* {
    if (!needs[place]) return nullptr;
    gradients.push_back(backend.allocate(like.sizes(), input.scalar_type()));
    return gradients.back().mutable_data_ptr();
  };
  lowered.memory.grad_input = allocate(0, input);
  for (int64_t l = 0; l < spec.layers.size(); ++l) {
    const LayerOps& ops = program.layers[l];
    LayerMemory& memory = lowered.memory.layers[l];
    if (ops.weight >= 0) memory.weight_gradient = allocate(1 + ops.weight, operands[ops.weight]);
    if (ops.bias >= 0) memory.bias_gradient = allocate(1 + ops.bias, operands[ops.bias]);
  }
  backend.backward(spec, lowered.memory);
  return gradients;
}

at::Tensor mlp_without_gradient(const at::Tensor& input, at::TensorList operands,
                                at::IntArrayRef program, at::ArrayRef<double> constants) {
  return std::get<0>(mlp_forward(input, operands, program, constants, {}));
}

std::tuple<at::Tensor, at::Tensor> mlp_train_without_gradient(const at::Tensor& input,
                                                              at::TensorList operands,
                                                              at::IntArrayRef program,
                                                              at::ArrayRef<double> constants) {
  auto [output, saved] = mlp_forward(input, operands, program, constants, {});
  return {output, statistics({input, operands, decode(program, constants)}, saved)};
}

}  // namespace

at::Tensor statistics(const Arguments& arguments, const at::Tensor& saved) {
  int64_t elements = 0;
  for (int64_t l = 0; l < arguments.program.layers.size(); ++l) {
    if (arguments.program.layers[l].norm == Norm::batch) elements += 2 * arguments.out_features(l);
  }
  return saved.narrow(0, 0, elements);
}

at::Tensor infer(const Arguments& arguments) {
  return run_forward(check(arguments), arguments, {}).output;
}

}  // namespace fastmlp

TORCH_LIBRARY_IMPL(fastmlp, CPU, m) {
  m.impl("mlp_forward", fastmlp::forward_operator);
  m.impl("mlp_backward", fastmlp::backward_operator);
}

TORCH_LIBRARY_IMPL(fastmlp, CompositeExplicitAutograd, m) {
  m.impl("mlp", fastmlp::mlp_without_gradient);
  m.impl("mlp_train", fastmlp::mlp_train_without_gradient);
}
