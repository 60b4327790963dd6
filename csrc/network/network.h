// A network as plain structs: what the checks in torch/ produce and a backend consumes. What a plan
// depends on is apart from where things lie, so that a plan is found again by one comparison.
#pragma once

#include <cstdint>
#include <cstring>

#include "network/activations.h"
#include "network/dtype.h"
#include "network/inline_vector.h"
#include "network/norms.h"

namespace fastmlp {

// What becomes of a gradient.
enum class Gradient : uint8_t {
  none,
  written,  // to the memory that is given
  added,    // times a scale, to the parameter itself
};

// One layer: y = activation(z), of which it gives y · noise + the input of a layer, or parts of
// that, or y times another layer's output; z is x · weightᵀ + bias, or a norm of x · weight + bias.
struct LayerSpec {
  int64_t in_features = 0;
  int64_t out_features = 0;
  int64_t weight_stride = 0;                // elements from one row of the weight to the next
  double parameters[kMostParameters] = {};  // the activation's
  double eps = 0;                           // the norm's
  int32_t activation = 0;
  bool bias = false;
  bool noise = false;  // dropout's
  // 0: nothing is added; else the input of the layer so many less one before this one, which has as
  // many features. No two such spans overlap.
  uint8_t skip = 0;
  // What forward leaves for backward.
  bool keeps_output = false, keeps_sums = false, keeps_activated = false;
  // What backward is to find.
  Gradient weight_gradient = Gradient::none, bias_gradient = Gradient::none;
  Norm norm = Norm::none;      // in_features == out_features where there is one
  bool shares_weight = false;  // of Norm::prelu: whether there is one for all features
  // Whether it takes the input of the layer before it, with whose output y is multiplied: gated
  // units (Y. N. Dauphin et al., ICML 2017; N. Shazeer, GLU Variants Improve Transformer, 2020).
  // Both are products, without noise and skip.
  bool gates = false;
  uint8_t unused[1] = {};

  bool is_output_activated() const { return !noise && !skip && !gates; }
  int64_t skip_from(int64_t l) const { return l + 1 - skip; }  // of layer l, where there is one
  bool is_norm() const { return norm != Norm::none; }
  int64_t weight_elements() const {
    if (!has_weight(norm)) return 0;
    return shares_weight ? 1 : is_norm() ? out_features : out_features * in_features;
  }
  bool is_trained() const {
    return weight_gradient != Gradient::none || bias_gradient != Gradient::none;
  }
};
// So that two of them are compared as bytes.
static_assert(sizeof(LayerSpec) == 48 + sizeof(double) * kMostParameters);

struct NetworkSpec {
  struct Head {
    Dtype dtype = Dtype::float32;
    int64_t batch = 0;
    int64_t input_stride = 0;
    // Of backward.
    int64_t grad_output_stride = 0;
    int64_t input_gradient = 0;  // whether it is wanted
  } head;
  InlineVector<LayerSpec, 8> layers;

  bool operator==(const NetworkSpec& other) const {
    return std::memcmp(&head, &other.head, sizeof(head)) == 0 &&
           layers.size() == other.layers.size() &&
           std::memcmp(layers.begin(), other.layers.begin(), layers.size() * sizeof(LayerSpec)) ==
               0;
  }
  // The layer whose input a layer takes as its own.
  int64_t reads_with(int64_t l) const { return layers[l].gates ? l - 1 : l; }
  // Elements from row to row of a layer's input.
  int64_t input_stride(int64_t l) const {
    return reads_with(l) > 0 ? layers[l].in_features : head.input_stride;
  }
  // Whether a layer's output is a factor of the next one's.
  bool is_gated(int64_t l) const { return l + 1 < layers.size() && layers[l + 1].gates; }
  // The lowest layer that a gradient passes through; the number of layers: none does.
  int64_t first_trained() const {
    int64_t first = 0;
    if (head.input_gradient) return first;
    while (first < layers.size() && !layers[first].is_trained()) ++first;
    return first;
  }
};

struct Update;

// Where a layer's operands lie, of the network's dtype.
struct LayerMemory {
  // [out_features, in_features], contiguous along in_features; of a norm that has one
  // [out_features], contiguous, or [1] where it is shared
  const void* weight = nullptr;
  const void* bias = nullptr;   // [out_features], contiguous
  const void* noise = nullptr;  // [batch, out_features], contiguous
  // Of Norm::fixed, and of Norm::batch, whose forward writes them and whose backward reads them;
  // [out_features] each.
  void* mean = nullptr;
  void* variance = nullptr;
  // Forward writes them, backward reads them; [batch, out_features], contiguous.
  void* output = nullptr;     // null where nobody will need it again
  void* sums = nullptr;       // z
  void* activated = nullptr;  // y, where it is not the output
  // Gradients, where they are written; contiguous like the parameters.
  void* weight_gradient = nullptr;
  void* bias_gradient = nullptr;
  // What to do with them as soon as they are there; null: nothing.
  const Update* weight_update = nullptr;
  const Update* bias_update = nullptr;
};

struct NetworkMemory {
  const void* input = nullptr;        // [batch, in_features], contiguous along features
  const void* grad_output = nullptr;  // [batch, out_features], contiguous along features
  void* grad_input = nullptr;         // [batch, in_features], contiguous
  InlineVector<LayerMemory, 8> layers;
};

}  // namespace fastmlp
