// The multilayer perceptron as plain structs: what the checks of problem.cpp produce and the
// kernels consume. No torch here.
#pragma once

#include <cstdint>
#include <vector>

#include "network/training.h"

namespace fastmlp {

// The order is part of the operators' schema (saved graphs hold the numbers): append, never
// reorder.
enum class Activation : int {
  identity,
  relu,
  leaky_relu,
  elu,
  sigmoid,
  tanh,
  gelu,
  gelu_tanh,
  silu
};
inline constexpr int kActivations = 9;
inline constexpr const char* kActivationNames[kActivations] = {
    "identity", "relu", "leaky_relu", "elu", "sigmoid", "tanh", "gelu", "gelu_tanh", "silu"};

// What backward reads of a layer to go through its activation: its sums z, its output y =
// activation(z), or nothing. It is what torch's own modules keep, so that neither memory nor
// accuracy nor what may be modified in place differs from theirs.
inline constexpr bool saves_output(Activation a) {
  return a == Activation::relu || a == Activation::sigmoid || a == Activation::tanh;
}
inline constexpr bool saves_sums(Activation a) {
  return a != Activation::identity && !saves_output(a);
}

// One layer: y = activation(x · weightᵀ + bias), of which it gives y · noise + x, or parts of that.
template <typename T>
struct Layer {
  int64_t in_features = 0;
  int64_t out_features = 0;
  const T* weight = nullptr;  // [out_features, in_features], contiguous along in_features
  int64_t weight_stride = 0;  // elements from one row to the next
  const T* bias = nullptr;    // [out_features], contiguous; null: none
  Activation activation = Activation::identity;
  T slope = 0;               // leaky_relu: negative_slope, elu: alpha; unused elsewhere
  const T* noise = nullptr;  // dropout's, [batch, out_features], contiguous; null: ones
  bool skip = false;         // whether x is added; in_features == out_features then

  // Forward writes them, backward reads them; [batch, out_features], contiguous.
  T* output = nullptr;     // null where nobody will need it again (then a scratch buffer holds it)
  T* sums = nullptr;       // z, where saves_sums(activation) and backward will need it
  T* activated = nullptr;  // y, where it is not the output and saves_output(activation) and …

  bool is_output_activated() const { return !noise && !skip; }
};

// What follows a layer's activation, as the operators number it: a sum of these.
inline constexpr int64_t kNoise = 1, kSkip = 2;

// The first layer's weight in another layout, for inputs that are mostly one value
// (cpu/sparse_input.h). A training step's two passes share it, and a loop's steps.
template <typename T>
struct KeptWeight {
  T* panels = nullptr;    // memory of kept_elements()
  bool newer = false;     // than the weight itself
  bool may_wait = false;  // the weight may stay older until flush()
};

template <typename T>
struct Forward {
  KeptWeight<T>* kept = nullptr;  // null: none wanted
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
  // What to do with them as soon as they are there; null: nothing. The weight's gradient may be
  // missing where its update is plain: it is then added to the weight itself.
  const Update<T>* weight_update = nullptr;
  const Update<T>* bias_update = nullptr;

  bool trains_weight() const { return weight || weight_update; }
};

template <typename T>
struct Backward {
  Forward<T> forward;
  const T* grad_output =
      nullptr;  // [batch, out_features of the last layer], contiguous along features
  int64_t grad_output_stride = 0;
  std::vector<LayerGradient<T>> gradients;
  T* grad_input = nullptr;  // [batch, in_features], contiguous; null: not needed
};

}  // namespace fastmlp
