#include "torch/plain.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <string>
#include <vector>

namespace fastmlp {
namespace {

// Calls the activation's ATen operator, whose arguments are named like the module's attributes.
at::Tensor activate(const ActivationInfo& info, const double* parameters, const at::Tensor& z) {
  const std::string name = std::string("aten::") + (info.op ? info.op : info.name);
  const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name.c_str(), "");
  torch::jit::Stack stack;
  for (const c10::Argument& argument : op.schema().arguments()) {
    c10::IValue value = argument.default_value().value_or(c10::IValue());
    if (stack.empty()) value = z;
    for (int i = 0; i < info.parameter_count(); ++i) {
      if (argument.name() == info.parameters[i].name) value = parameters[i];
    }
    if (info.mode_name && argument.name() == info.mode_name) value = std::string(info.mode);
    stack.push_back(std::move(value));
  }
  op.callBoxed(stack);
  return stack.front().toTensor();
}

// What a layer's activation is given.
at::Tensor sums(const Arguments& a, const LayerOps& layer, const at::Tensor& x) {
  using Optional = std::optional<at::Tensor>;
  const auto operand = [&](int place) {
    return place >= 0 ? Optional(a.operands[place]) : std::nullopt;
  };
  const Optional weight = operand(layer.weight), bias = operand(layer.bias);
  switch (layer.norm) {
    case Norm::none:
      return at::linear(x, *weight, bias);
    case Norm::layer:
      return at::layer_norm(x, {x.size(-1)}, weight, bias, layer.eps);
    case Norm::rms: {
      const at::Tensor y = at::rms_norm(x, {x.size(-1)}, weight, layer.eps);
      return bias ? y + *bias : y;
    }
    case Norm::batch:
    case Norm::fixed:
      return at::batch_norm(x, weight, bias, operand(layer.mean), operand(layer.variance),
                            layer.norm == Norm::batch, 0, layer.eps, false);
    case Norm::softmax:
      return at::softmax(x, -1);
    case Norm::log_softmax:
      return at::log_softmax(x, -1);
    case Norm::pass:
      return x;
    case Norm::prelu:
      return at::prelu(x, *weight);
  }
  TORCH_INTERNAL_ASSERT(false, "a norm without its operation");
}

}  // namespace

at::Tensor plain(const Arguments& a) {
  at::Tensor x = a.input.reshape({a.batch(), a.input.size(-1)});
  std::vector<at::Tensor> inputs;
  for (const LayerOps& layer : a.program.layers) {
    const at::Tensor gated = x;
    if (layer.gates) x = inputs.back();
    inputs.push_back(x);
    at::Tensor y = sums(a, layer, x);
    if (layer.activation != 0) y = activate(activations()[layer.activation], layer.parameters, y);
    if (layer.noise >= 0) y = y * a.operands[layer.noise];
    if (layer.gates) y = y * gated;
    x = layer.skip > 0 ? y + inputs[inputs.size() - layer.skip] : y;
  }
  at::DimVector sizes(a.input.sizes());
  sizes.back() = x.size(-1);
  return x.reshape(sizes);
}

}  // namespace fastmlp
