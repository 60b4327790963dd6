#include "torch/lower.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "network/saved.h"

namespace fastmlp {
namespace {

bool rows_are_contiguous(const at::Tensor& matrix) {
  return matrix.size(1) <= 1 || (matrix.stride(1) == 1 && matrix.stride(0) >= 0);
}

// All that a layer's ops tell without its tensors.
LayerSpec spec_of(const LayerOps& ops) {
  LayerSpec layer;
  layer.activation = ops.activation;
  std::copy_n(ops.parameters, kMostParameters, layer.parameters);
  layer.bias = ops.bias >= 0;
  layer.noise = ops.noise >= 0;
  layer.skip = static_cast<uint8_t>(ops.skip);
  layer.norm = ops.norm;
  layer.eps = ops.eps;
  return layer;
}

}  // namespace

at::Tensor as_rows(const at::Tensor& tensor) {
  const int64_t features = tensor.size(-1);
  const int64_t batch = c10::multiply_integers(tensor.sizes().slice(0, tensor.dim() - 1));
  const at::Tensor rows = tensor.dim() == 2 ? tensor : tensor.reshape({batch, features});
  return rows_are_contiguous(rows) ? rows : rows.contiguous();
}

Lowered lower(const Arguments& a) {
  Lowered lowered;
  lowered.input = as_rows(a.input);
  // A single column is handled as a row.
  const auto adds_input = [&] {
    for (int64_t l = 0; l < a.program.layers.size(); ++l) {
      if (a.program.layers[l].skip == l + 1) return true;
    }
    return false;
  };
  if (lowered.input.size(1) == 1 && adds_input()) lowered.input = lowered.input.contiguous();
  NetworkSpec& spec = lowered.spec;
  spec.head.dtype = dtype_of(a.input);
  spec.head.batch = lowered.input.size(0);
  spec.head.input_stride = lowered.input.stride(0);
  lowered.memory.input = lowered.input.const_data_ptr();
  const auto readable = [&](const at::Tensor& tensor, bool is) -> const at::Tensor& {
    if (is) return tensor;
    lowered.copies.push_back(tensor.contiguous());
    return lowered.copies.back();
  };
  for (const LayerOps& ops : a.program.layers) {
    LayerSpec layer = spec_of(ops);
    LayerMemory memory;
    const at::Tensor& given = a.operands[ops.weight];
    const at::Tensor& weight =
        readable(given, layer.is_norm() ? given.is_contiguous() : rows_are_contiguous(given));
    layer.out_features = weight.size(0);
    layer.in_features = layer.is_norm() ? layer.out_features : weight.size(1);
    layer.weight_stride = layer.is_norm() ? 0 : weight.stride(0);
    memory.weight = weight.const_data_ptr();
    if (ops.bias >= 0) {
      const at::Tensor& bias = a.operands[ops.bias];
      memory.bias = readable(bias, bias.is_contiguous()).const_data_ptr();
    }
    if (ops.noise >= 0) memory.noise = a.operands[ops.noise].const_data_ptr();
    spec.layers.push_back(layer);
    lowered.memory.layers.push_back(memory);
  }
  return lowered;
}

void set_gradients(const Program& program, const Needs& needs, NetworkSpec& spec) {
  if (needs.empty()) return;
  spec.head.input_gradient = needs[0];
  const auto gradient = [&](int operand) {
    return operand >= 0 && needs[1 + operand] ? Gradient::written : Gradient::none;
  };
  for (int64_t l = 0; l < spec.layers.size(); ++l) {
    spec.layers[l].weight_gradient = gradient(program.layers[l].weight);
    spec.layers[l].bias_gradient = gradient(program.layers[l].bias);
  }
}

std::vector<int64_t> saved_weights(const Program& program, const Needs& needs) {
  std::vector<int64_t> weights;
  if (needs.empty()) return weights;
  NetworkSpec spec;
  for (const LayerOps& ops : program.layers) spec.layers.push_back(spec_of(ops));
  set_gradients(program, needs, spec);
  keep_for_gradients(spec);
  for (const int64_t l : kept_layers(spec)) weights.push_back(program.layers[l].weight);
  return weights;
}

}  // namespace fastmlp
