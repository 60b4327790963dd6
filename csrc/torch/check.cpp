#include "torch/check.h"

#include <algorithm>
#include <utility>

namespace fastmlp {
namespace {

void check_parameters(const Arguments& a) {
  TORCH_CHECK(!a.program.layers.empty(), "fastmlp: expected at least one layer, got none");
  const auto given = static_cast<int64_t>(a.operands.size());
  TORCH_CHECK(
      a.input.dim() > 0,
      "fastmlp: expected an input of shape (..., in_features), got a tensor of 0 dimensions");
  int64_t features = a.input.size(-1), before = features;  // before: of the last layer's input
  for (int64_t l = 0; l < a.program.layers.size(); ++l) {
    const LayerOps& layer = a.program.layers[l];
    const int64_t gated = features;
    if (layer.gates) features = before;
    before = features;
    TORCH_CHECK(std::max({layer.weight, layer.bias, layer.variance}) < given,
                "fastmlp: expected an operand for each op of the program, got ", given);
    if (layer.weight < 0) continue;
    const at::Tensor& weight = a.operands[layer.weight];
    const bool is_norm = layer.norm != Norm::none;
    TORCH_CHECK(is_norm || weight.dim() == 2, "fastmlp: expected weight ", l,
                " of shape (out_features, in_features), got ", weight.sizes());
    if (layer.norm == Norm::prelu) {
      TORCH_CHECK(weight.dim() == 1 && (weight.size(0) == 1 || weight.size(0) == features),
                  "fastmlp: expected the weight of a PReLU, ", l, ", of shape (1) or (", features,
                  ") for an input of ", features, " features, got ", weight.sizes());
    } else if (is_norm) {
      TORCH_CHECK(weight.dim() == 1 && weight.size(0) == features,
                  "fastmlp: expected the weight of a norm, ", l, ", of shape (", features,
                  ") for an input of ", features, " features, got ", weight.sizes());
    } else if (l == 0) {
      TORCH_CHECK(
          weight.size(1) == features,
          "fastmlp: mat1 and mat2 shapes cannot be multiplied: expected an input of shape (..., ",
          weight.size(1), ") for a weight of shape ", weight.sizes(), ", got ", a.input.sizes());
    } else {
      TORCH_CHECK(weight.size(1) == features, "fastmlp: expected weight ", l,
                  " of shape (out_features, ", features, ") after a layer of ", features,
                  " features, got ", weight.sizes());
    }
    if (layer.has_whole_weight()) features = weight.size(0);
    TORCH_CHECK(!layer.gates || features == gated, "fastmlp: expected weight ", l, " of shape (",
                gated, ", in_features), as many rows as the weight before it, whose output is ",
                "multiplied with this one's, got ", weight.sizes());
    TORCH_CHECK(weight.scalar_type() == a.input.scalar_type(),
                "fastmlp: mat1 and mat2 must have the same dtype, but got ", a.input.scalar_type(),
                " (input) and ", weight.scalar_type(), " (weight ", l, ")");
    TORCH_CHECK(weight.device() == a.input.device(),
                "fastmlp: expected all tensors to be on the same device, but found ",
                a.input.device(), " (input) and ", weight.device(), " (weight ", l, ")");
    for (const auto& [name, operand] :
         {std::pair("bias ", layer.bias), {"mean ", layer.mean}, {"variance ", layer.variance}}) {
      if (operand < 0) continue;
      const at::Tensor& tensor = a.operands[operand];
      TORCH_CHECK(tensor.dim() == 1 && tensor.size(0) == features, "fastmlp: expected ", name, l,
                  " of shape (", features, "), got ", tensor.sizes());
      TORCH_CHECK(
          tensor.scalar_type() == a.input.scalar_type() && tensor.device() == a.input.device(),
          "fastmlp: expected ", name, l, " of dtype ", a.input.scalar_type(), " on ",
          a.input.device(), ", got ", tensor.scalar_type(), " on ", tensor.device());
    }
  }
}

void check_skips(const Arguments& a) {
  for (int64_t l = 0; l < a.program.layers.size(); ++l) {
    const int skip = a.program.layers[l].skip;
    if (skip == 0) continue;
    const int64_t from = l + 1 - skip, in = a.in_features(from), out = a.out_features(l);
    const auto shape = [&](int64_t layer) {
      const int weight = a.program.layers[layer].weight;
      return weight < 0 ? at::IntArrayRef() : a.operands[weight].sizes();
    };
    TORCH_CHECK(in == out,
                "fastmlp: expected as many in_features as out_features where the input of a layer "
                "is added to the output of one, got ",
                out, " after weight ", l, " of shape ", shape(l), " and ", in, " before weight ",
                from, " of shape ", shape(from));
  }
}

const Backend& check_backend(const Arguments& a) {
  const Backend* const backend = backend_of(a.input.device().type());
  TORCH_CHECK(backend, "fastmlp: there are no kernels for tensors on ", a.input.device());
  TORCH_CHECK(backend->takes(a.input.scalar_type()), "fastmlp: expected float32 or float64, got ",
              a.input.scalar_type());
  return *backend;
}

void check_noise(const Arguments& a, int64_t l) {
  const LayerOps& layer = a.program.layers[l];
  TORCH_CHECK(layer.dropout == 0,
              "fastmlp: the operators take the noise of a dropout, drawn "
              "before, and not its probability");
  if (layer.noise < 0) return;
  const at::Tensor& noise = a.operands[layer.noise];
  const int64_t rows = a.batch(), features = a.out_features(l);
  TORCH_CHECK(noise.dim() == 2 && noise.size(0) == rows && noise.size(1) == features &&
                  noise.is_contiguous() && noise.scalar_type() == a.input.scalar_type() &&
                  noise.device() == a.input.device(),
              "fastmlp: expected contiguous noise of shape [", rows, ", ", features, "], dtype ",
              a.input.scalar_type(), ", on ", a.input.device(), ", got shape ", noise.sizes(),
              ", dtype ", noise.scalar_type(), ", on ", noise.device());
}

}  // namespace

const Backend& check(const Arguments& a) {
  TORCH_CHECK(static_cast<int64_t>(a.operands.size()) == a.program.operands, "fastmlp: expected ",
              a.program.operands, " operands for this program, got ", a.operands.size());
  check_parameters(a);
  check_skips(a);
  for (int64_t l = 0; l < a.program.layers.size(); ++l) check_noise(a, l);
  return check_backend(a);
}

void check_undrawn(const Arguments& a) {
  check_parameters(a);
  check_skips(a);
  check_backend(a);
}

void check_needs(const Arguments& a, const Needs& needs) {
  TORCH_CHECK(needs.empty() || needs.size() == 1 + a.operands.size(),
              "fastmlp: expected no needs or ", 1 + a.operands.size(), " of them for ",
              a.operands.size(), " operands, got ", needs.size());
  for (const LayerOps& layer : a.program.layers)
    TORCH_CHECK(needs.empty() || layer.noise < 0 || !needs[1 + layer.noise],
                "fastmlp: noise has no gradient");
}

void check_backward(const Arguments& a, const at::Tensor& grad_output, const at::Tensor& output,
                    const at::Tensor& saved, int64_t saved_elements, const Needs& foreseen,
                    const Needs& needs) {
  for (size_t i = 0; i < needs.size(); ++i) {
    TORCH_CHECK(!needs[i] || (!foreseen.empty() && foreseen[i]), "fastmlp: gradient ", i,
                " was not foreseen in forward");
  }
  at::DimVector expected(a.input.sizes());
  expected.back() = a.out_features(a.program.layers.size() - 1);
  for (const at::Tensor* tensor : {&grad_output, &output}) {
    TORCH_CHECK(tensor->sizes() == expected && tensor->scalar_type() == a.input.scalar_type() &&
                    tensor->device() == a.input.device(),
                "fastmlp: expected grad_output and output of shape ", at::IntArrayRef(expected),
                ", dtype ", a.input.scalar_type(), ", on ", a.input.device(), ", got shape ",
                tensor->sizes(), ", dtype ", tensor->scalar_type(), ", on ", tensor->device());
  }
  TORCH_CHECK(
      saved.dim() == 1 && saved.numel() == saved_elements &&
          saved.scalar_type() == a.input.scalar_type() && saved.device() == a.input.device() &&
          saved.is_contiguous(),
      "fastmlp: expected the saved activations of mlp_forward for the same needs, of shape [",
      saved_elements, "], got ", saved.sizes());
}

}  // namespace fastmlp
