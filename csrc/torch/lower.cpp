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
  layer.gates = ops.gates;
  return layer;
}

// At least so many, kept for the next call.
at::Tensor ones(int64_t features, const at::TensorOptions& options) {
  thread_local at::Tensor kept[2];
  at::Tensor& tensor = kept[options.dtype() == at::kDouble];
  if (!tensor.defined() || tensor.numel() < features)
    tensor = at::ones({features}, at::TensorOptions(options.dtype()));
  return tensor;
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
  const auto column_numbers = [&](int operand) -> const void* {
    if (operand < 0) return nullptr;
    const at::Tensor& tensor = a.operands[operand];
    return readable(tensor, tensor.is_contiguous()).const_data_ptr();
  };
  int64_t features = lowered.input.size(1);
  for (const LayerOps& ops : a.program.layers) {
    LayerSpec layer = spec_of(ops);
    LayerMemory memory;
    layer.in_features = layer.gates ? spec.layers.back().in_features : features;
    if (layer.is_norm()) {
      memory.weight = column_numbers(ops.weight);
      layer.shares_weight = layer.norm == Norm::prelu && a.operands[ops.weight].size(0) == 1;
      if (ops.weight < 0 && has_weight(layer.norm)) {
        lowered.copies.push_back(ones(features, a.input.options()));
        memory.weight = lowered.copies.back().const_data_ptr();
      }
      memory.mean = const_cast<void*>(column_numbers(ops.mean));  // only read
      memory.variance = const_cast<void*>(column_numbers(ops.variance));
    } else {
      const at::Tensor& given = a.operands[ops.weight];
      const at::Tensor& weight = readable(given, rows_are_contiguous(given));
      features = weight.size(0);
      layer.weight_stride = weight.stride(0);
      memory.weight = weight.const_data_ptr();
    }
    layer.out_features = features;
    memory.bias = column_numbers(ops.bias);
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

std::vector<int64_t> saved_layers(const Program& program, const Needs& needs) {
  if (needs.empty()) return {};
  NetworkSpec spec;
  for (const LayerOps& ops : program.layers) spec.layers.push_back(spec_of(ops));
  set_gradients(program, needs, spec);
  keep_for_gradients(spec);
  const auto layers = kept_layers(spec);
  return {layers.begin(), layers.end()};
}

}  // namespace fastmlp
