// A network as a list of numbers over a list of tensors: the one form in which it goes through
// Python, the operators' schema and saved graphs.
#pragma once

#include <cstdint>

#include "network/activations.h"
#include "network/inline_vector.h"
#include "network/norms.h"

namespace fastmlp {

// What follows an op code in the program, the constants and the operands. Saved graphs hold the
// codes: append, never reorder.
enum class Op : int64_t {
  linear,      // program: whether there is a bias; operands: weight, bias. Begins a layer
  activation,  // program: its number; constants: its parameters
  dropout,     // constants: the probability of a zero. Becomes `noise` when its numbers are drawn
  noise,       // operands: what the layer's output is multiplied by, [batch, out_features]
  skip,        // the layer's input is added to its output
  // Program: whether there is a bias, plus 2 where there is no weight; constants: eps; operands:
  // weight and bias of as many elements as there are features
  layer_norm,
  rms_norm,
  skip_over,  // program: of how many layers, this the last one, the input is added to the output
  // What begins a layer, too (network/norms.h).
  batch_norm,  // as layer_norm
  fixed_norm,  // as layer_norm; operands: … mean, variance
  softmax,     // nothing more, as the next two
  log_softmax,
  pass,
  prelu,  // operands: weight, of as many elements as there are features, or one
  gate,   // the layer takes the input of the one before it, with whose output its own is multiplied
};
inline constexpr int kMostSkipped = 255;

// A layer's ops, which come in the order above, and its operands by their places; -1: none.
struct LayerOps {
  int weight = -1, bias = -1, noise = -1, mean = -1, variance = -1;
  int activation = 0;
  double parameters[kMostParameters] = {};
  double dropout = 0;
  int skip = 0;  // over how many layers; 0: none
  Norm norm = Norm::none;
  double eps = 0;  // the norm's
  bool gates = false;

  // Whether its output is what the activation gives.
  bool is_output_activated() const { return noise < 0 && skip == 0 && !gates; }
  // Whether it may be one of the two layers of a gate.
  bool is_half_of_gate() const {
    return norm == Norm::none && noise < 0 && dropout == 0 && skip == 0 && !gates;
  }
  // Whether the weight is as long as the output has features.
  bool has_whole_weight() const { return weight >= 0 && norm != Norm::prelu; }
};

struct Program {
  InlineVector<LayerOps, 8> layers;
  int operands = 0;

  // Appends a layer of a linear op, or of what stands in its place, alone.
  LayerOps& add(Norm norm, double eps, bool bias, bool weight = true);
};

bool has_batch_norm(const Program& program);

using Numbers = InlineVector<int64_t, 48>;
using Constants = InlineVector<double, 16>;
void encode(const Program& program, Numbers& numbers, Constants& constants);
// Throws std::runtime_error with what is wrong.
Program decode(const int64_t* numbers, int64_t count, const double* constants,
               int64_t constant_count);

}  // namespace fastmlp
