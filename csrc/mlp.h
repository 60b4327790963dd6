// The multilayer perceptron as plain structs: what the checks of problem.cpp produce and the kernels consume. No torch here.
#pragma once

#include <cstdint>
#include <vector>

namespace fastmlp {

// The order is part of the operators' schema (saved graphs hold the numbers): append, never reorder.
enum class Activation : int { identity, relu, leaky_relu, elu, sigmoid, tanh, gelu, gelu_tanh, silu };
inline constexpr int kActivations = 9;
inline constexpr const char* kActivationNames[kActivations] = {"identity", "relu", "leaky_relu", "elu",  "sigmoid",
                                                               "tanh",     "gelu", "gelu_tanh",  "silu"};

// Whether the derivative is computed from the layer's sums z (true) or from its output y = activation(z) (false). It is
// what torch's own modules keep, too, so that neither memory nor accuracy is lost against them.
inline constexpr bool saves_input(Activation a) {
  return a == Activation::elu || a == Activation::gelu || a == Activation::gelu_tanh || a == Activation::silu;
}

// One layer: y = activation(x · weightᵀ + bias).
template <typename T>
struct Layer {
  int64_t in_features = 0;
  int64_t out_features = 0;
  const T* weight = nullptr;  // [out_features, in_features], contiguous along in_features
  int64_t weight_stride = 0;  // elements from one row to the next
  const T* bias = nullptr;    // [out_features], contiguous; null: none
  Activation activation = Activation::identity;
  T slope = 0;  // leaky_relu: negative_slope, elu: alpha; unused elsewhere

  // Forward writes them, backward reads them; [batch, out_features], contiguous.
  T* output = nullptr;  // y; null where nobody will need it again (then a scratch buffer holds it)
  T* sums = nullptr;    // z, where saves_input(activation) and backward will need it
};

template <typename T>
struct Forward {
  int64_t batch = 0;
  const T* input = nullptr;  // [batch, layers[0].in_features], contiguous along features
  int64_t input_stride = 0;
  std::vector<Layer<T>> layers;
};

// Gradients of one layer's parameters; null: not needed.
template <typename T>
struct LayerGradient {
  T* weight = nullptr;  // [out_features, in_features], contiguous
  T* bias = nullptr;    // [out_features]
};

template <typename T>
struct Backward {
  Forward<T> forward;
  const T* grad_output = nullptr;  // [batch, out_features of the last layer], contiguous along features
  int64_t grad_output_stride = 0;
  std::vector<LayerGradient<T>> gradients;
  T* grad_input = nullptr;  // [batch, in_features], contiguous; null: not needed
};

}  // namespace fastmlp
