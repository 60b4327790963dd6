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

}  // namespace

at::Tensor plain(const Arguments& a) {
  at::Tensor x = a.input.reshape({a.batch(), a.input.size(-1)});
  std::vector<at::Tensor> inputs;
  for (const LayerOps& layer : a.program.layers) {
    inputs.push_back(x);
    const at::Tensor& weight = a.operands[layer.weight];
    const auto bias =
        layer.bias >= 0 ? std::optional<at::Tensor>(a.operands[layer.bias]) : std::nullopt;
    at::Tensor y = layer.norm == Norm::none ? at::linear(x, weight, bias)
                   : layer.norm == Norm::layer
                       ? at::layer_norm(x, {weight.size(0)}, weight, bias, layer.eps)
                       : at::rms_norm(x, {weight.size(0)}, weight, layer.eps);
    if (layer.norm == Norm::rms && bias) y = y + *bias;
    if (layer.activation != 0) y = activate(activations()[layer.activation], layer.parameters, y);
    if (layer.noise >= 0) y = y * a.operands[layer.noise];
    x = layer.skip > 0 ? y + inputs[inputs.size() - layer.skip] : y;
  }
  at::DimVector sizes(a.input.sizes());
  sizes.back() = x.size(-1);
  return x.reshape(sizes);
}

}  // namespace fastmlp
