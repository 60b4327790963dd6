#include "torch/problem.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace fastmlp {
namespace {

bool rows_are_contiguous(const at::Tensor& matrix) {
  return matrix.size(1) <= 1 || (matrix.stride(1) == 1 && matrix.stride(0) >= 0);
}

void check_noise(const Arguments& a) {
  int64_t elements = 0;
  for (size_t l = 0; l < a.tails.size(); ++l) elements += a.noise_elements(l);
  const bool any = std::any_of(a.tails.begin(), a.tails.end(),
                               [](int64_t tail) { return (tail & kNoise) != 0; });
  TORCH_CHECK(a.noise.defined() == any, "fastmlp: expected ", any ? "" : "no ",
              "noise with these tails");
  if (!any) return;
  TORCH_CHECK(a.noise.dim() == 1 && a.noise.size(0) == elements && a.noise.is_contiguous() &&
                  a.noise.scalar_type() == a.input.scalar_type() &&
                  a.noise.device() == a.input.device(),
              "fastmlp: expected contiguous noise of shape [", elements, "], dtype ",
              a.input.scalar_type(), ", on ", a.input.device(), ", got shape ", a.noise.sizes(),
              ", dtype ", a.noise.scalar_type(), ", on ", a.noise.device());
}

}  // namespace

void check(const Arguments& a) {
  check_without_noise(a);
  check_noise(a);
}

void check_without_noise(const Arguments& a) {
  const auto layers = a.weights.size();
  TORCH_CHECK(layers > 0, "fastmlp: expected at least one weight, got none");
  TORCH_CHECK(a.biases.size() == layers,
              "fastmlp: expected as many biases (or None) as weights, got ", a.biases.size(),
              " biases for ", layers, " weights");
  TORCH_CHECK(a.activations.size() == layers && a.slopes.size() == layers,
              "fastmlp: expected an activation and a slope for each of ", layers, " layers, got ",
              a.activations.size(), " and ", a.slopes.size());
  TORCH_CHECK(a.tails.empty() || a.tails.size() == layers,
              "fastmlp: expected no tails or one for each of ", layers, " layers, got ",
              a.tails.size());
  TORCH_CHECK(
      a.input.dim() > 0,
      "fastmlp: expected an input of shape (..., in_features), got a tensor of 0 dimensions");
  c10::SymInt features = a.input.sym_size(-1);
  for (size_t l = 0; l < layers; ++l) {
    const at::Tensor& weight = a.weights[l];
    TORCH_CHECK(weight.dim() == 2, "fastmlp: expected weight ", l,
                " of shape (out_features, in_features), got ", weight.sym_sizes());
    if (l == 0) {
      TORCH_CHECK(
          weight.sym_size(1) == features,
          "fastmlp: mat1 and mat2 shapes cannot be multiplied: expected an input of shape (..., ",
          weight.sym_size(1), ") for a weight of shape ", weight.sym_sizes(), ", got ",
          a.input.sym_sizes());
    } else {
      TORCH_CHECK(weight.sym_size(1) == features, "fastmlp: expected weight ", l,
                  " of shape (out_features, ", features, ") after a layer of ", features,
                  " features, got ", weight.sym_sizes());
    }
    features = weight.sym_size(0);
    TORCH_CHECK(weight.scalar_type() == a.input.scalar_type(),
                "fastmlp: mat1 and mat2 must have the same dtype, but got ", a.input.scalar_type(),
                " (input) and ", weight.scalar_type(), " (weight ", l, ")");
    TORCH_CHECK(weight.device() == a.input.device(),
                "fastmlp: expected all tensors to be on the same device, but found ",
                a.input.device(), " (input) and ", weight.device(), " (weight ", l, ")");
    if (const auto& bias = a.biases[l]) {
      TORCH_CHECK(bias->dim() == 1 && bias->sym_size(0) == features, "fastmlp: expected bias ", l,
                  " of shape (", features, "), got ", bias->sym_sizes());
      TORCH_CHECK(
          bias->scalar_type() == a.input.scalar_type() && bias->device() == a.input.device(),
          "fastmlp: expected bias ", l, " of dtype ", a.input.scalar_type(), " on ",
          a.input.device(), ", got ", bias->scalar_type(), " on ", bias->device());
    }
    TORCH_CHECK(a.activations[l] >= 0 && a.activations[l] < kActivations,
                "fastmlp: unknown activation ", a.activations[l]);
    TORCH_CHECK(a.tail(l) >= 0 && a.tail(l) <= (kNoise | kSkip), "fastmlp: unknown tail ",
                a.tail(l));
    TORCH_CHECK(!(a.tail(l) & kSkip) || weight.sym_size(0) == weight.sym_size(1),
                "fastmlp: expected as many in_features as out_features where a layer's input is "
                "added to its output, got weight ",
                l, " of shape ", weight.sym_sizes());
  }
  TORCH_CHECK(a.input.scalar_type() == at::kFloat || a.input.scalar_type() == at::kDouble,
              "fastmlp: expected float32 or float64, got ", a.input.scalar_type());
}

void check_needs(size_t layers, const Needs& needs) {
  TORCH_CHECK(needs.empty() || needs.size() == 1 + 2 * layers, "fastmlp: expected no needs or ",
              1 + 2 * layers, " of them for ", layers, " layers, got ", needs.size());
}

void check_backward(const Arguments& a, const at::Tensor& grad_output, const at::Tensor& output,
                    const at::Tensor& saved, const Needs& kept, const Needs& needs) {
  check_needs(a.weights.size(), kept);
  check_needs(a.weights.size(), needs);
  for (size_t i = 0; i < needs.size(); ++i) {
    TORCH_CHECK(!needs[i] || (!kept.empty() && kept[i]), "fastmlp: gradient ", i,
                " was not foreseen in forward");
  }
  at::DimVector expected(a.input.sizes());
  expected.back() = a.weights.back().size(0);
  for (const at::Tensor* tensor : {&grad_output, &output}) {
    TORCH_CHECK(tensor->sizes() == expected && tensor->scalar_type() == a.input.scalar_type() &&
                    tensor->device() == a.input.device(),
                "fastmlp: expected grad_output and output of shape ", at::IntArrayRef(expected),
                ", dtype ", a.input.scalar_type(), ", on ", a.input.device(), ", got shape ",
                tensor->sizes(), ", dtype ", tensor->scalar_type(), ", on ", tensor->device());
  }
  const int64_t elements = saved_layout(a, kept).elements;
  TORCH_CHECK(
      saved.dim() == 1 && saved.numel() == elements &&
          saved.scalar_type() == a.input.scalar_type() && saved.device() == a.input.device() &&
          saved.is_contiguous(),
      "fastmlp: expected the saved activations of mlp_forward for the same kept, of shape [",
      elements, "], got ", saved.sizes());
}

int64_t first_layer(size_t layers, const Needs& needs) {
  if (needs.empty()) return static_cast<int64_t>(layers);
  size_t first = 0;
  while (first < layers &&
         !(needs[1 + first] || needs[1 + layers + first] || (first == 0 && needs[0])))
    ++first;
  return static_cast<int64_t>(first);
}

SavedLayout saved_layout(const Arguments& a, const Needs& needs) {
  SavedLayout layout;
  const int64_t batch = a.batch();
  const size_t layers = a.weights.size(), first = first_layer(layers, needs);
  const auto take = [&](bool wanted, int64_t features) {
    if (!wanted) return int64_t{-1};
    const int64_t begin = layout.elements;
    layout.elements += batch * features;
    return begin;
  };
  for (size_t l = 0; l < layers; ++l) {
    const int64_t features = a.weights[l].size(0);
    const auto activation = static_cast<Activation>(a.activations[l]);
    const bool passes_activation = l >= first && saves_output(activation);
    // The last layer's output is kept as such, not here.
    const bool feeds = l + 1 < layers && !needs.empty() && needs[1 + l + 1];
    layout.outputs.push_back(
        take(l + 1 < layers && (feeds || (passes_activation && a.tail(l) == 0)), features));
    layout.sums.push_back(take(l >= first && saves_sums(activation), features));
    layout.activated.push_back(take(passes_activation && a.tail(l) != 0, features));
  }
  return layout;
}

at::Tensor as_rows(const at::Tensor& tensor) {
  const int64_t features = tensor.size(-1);
  const int64_t batch = c10::multiply_integers(tensor.sizes().slice(0, tensor.dim() - 1));
  const at::Tensor rows = tensor.dim() == 2 ? tensor : tensor.reshape({batch, features});
  return rows_are_contiguous(rows) ? rows : rows.contiguous();
}

template <typename T>
Forward<T> make_forward(const Arguments& a, Operands& operands) {
  operands.input = as_rows(a.input);
  // A single column is handled as a row.
  if ((a.tail(0) & kSkip) && operands.input.size(1) == 1)
    operands.input = operands.input.contiguous();
  Forward<T> problem;
  problem.batch = operands.input.size(0);
  problem.input = operands.input.const_data_ptr<T>();
  problem.input_stride = operands.input.stride(0);
  problem.layers.resize(a.weights.size());
  const auto keep = [&](const at::Tensor& tensor, bool readable) -> at::Tensor {
    if (readable) return tensor;
    operands.keep_alive.push_back(tensor.contiguous());
    return operands.keep_alive.back();
  };
  int64_t noise = 0;
  for (size_t l = 0; l < a.weights.size(); ++l) {
    Layer<T>& layer = problem.layers[l];
    const at::Tensor weight = keep(a.weights[l], rows_are_contiguous(a.weights[l]));
    layer.out_features = weight.size(0);
    layer.in_features = weight.size(1);
    layer.weight = weight.const_data_ptr<T>();
    layer.weight_stride = weight.stride(0);
    if (l < a.biases.size() && a.biases[l])
      layer.bias = keep(*a.biases[l], a.biases[l]->is_contiguous()).template const_data_ptr<T>();
    layer.activation = static_cast<Activation>(a.activations[l]);
    layer.slope = static_cast<T>(a.slopes[l]);
    layer.skip = (a.tail(l) & kSkip) != 0;
    if (a.tail(l) & kNoise) {
      layer.noise = a.noise.const_data_ptr<T>() + noise;
      noise += a.noise_elements(l);
    }
  }
  return problem;
}

template Forward<float> make_forward<float>(const Arguments&, Operands&);
template Forward<double> make_forward<double>(const Arguments&, Operands&);

}  // namespace fastmlp
