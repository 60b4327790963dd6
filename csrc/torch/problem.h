// Tensors → plain structs. Every check of shapes, dtypes and devices stands in problem.cpp and
// nowhere else.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Optional.h>

#include <vector>

#include "network/network.h"

namespace fastmlp {

// The arguments of the operators, as the schemas in ops.cpp name them.
struct Arguments {
  const at::Tensor& input;
  at::TensorList weights;
  c10::ArrayRef<std::optional<at::Tensor>> biases;
  at::IntArrayRef activations;
  at::ArrayRef<double> slopes;
  at::Tensor noise = {};       // of the layers that have kNoise, one after the other
  at::IntArrayRef tails = {};  // of kNoise and kSkip, for each layer; empty: none

  int64_t tail(size_t l) const { return tails.empty() ? 0 : tails[l]; }
  int64_t noise_elements(size_t l) const {
    return tail(l) & kNoise ? batch() * weights[l].size(0) : 0;
  }
  // The same network with another input, without noise.
  Arguments with(const at::Tensor& other) const {
    return {other, weights, biases, activations, slopes, {}, tails};
  }
  int64_t batch() const { return c10::multiply_integers(input.sizes().slice(0, input.dim() - 1)); }
};

// Throws c10::Error (RuntimeError in Python) with given and expected shapes unless the arguments
// form a network.
void check(const Arguments& arguments);
void check_without_noise(const Arguments& arguments);

// Which gradients are wanted: of input, weights…, biases…; empty: none.
using Needs = std::vector<bool>;

// The lowest layer that a gradient passes through; the number of layers: none does.
int64_t first_layer(size_t layers, const Needs& needs);

// Where in the one tensor of saved activations each layer's part begins; -1: not kept, for nothing
// will read it.
struct SavedLayout {
  std::vector<int64_t> outputs, sums, activated;
  int64_t elements = 0;
};
SavedLayout saved_layout(const Arguments& arguments, const Needs& needs);

// Further checks, of the arguments of forward and of backward.
void check_needs(size_t layers, const Needs& needs);
void check_backward(const Arguments& arguments, const at::Tensor& grad_output,
                    const at::Tensor& output, const at::Tensor& saved, const Needs& kept,
                    const Needs& needs);

// Owns contiguous copies of operands whose strides the kernels do not read, for as long as a
// problem points at them.
struct Operands {
  at::Tensor input;  // [batch, in_features], contiguous along features
  std::vector<at::Tensor> keep_alive;
};

// [batch, features] of a tensor [..., features], contiguous along features, copied only if its
// strides ask for it.
at::Tensor as_rows(const at::Tensor& tensor);

template <typename T>
Forward<T> make_forward(const Arguments& arguments, Operands& operands);

}  // namespace fastmlp
