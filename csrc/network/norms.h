// What stands in the place of a linear layer's product: what there is to know of it beside the
// formulas, which stand in cpu/kernels/norm-inl.h.
#pragma once

#include <cstdint>

namespace fastmlp {

enum class Norm : uint8_t {
  none,   // the product itself
  layer,  // (x - mean) / sqrt(variance + eps); J. L. Ba et al., Layer Normalization, 2016
  rms,    // x / sqrt(mean of x² + eps); B. Zhang, R. Sennrich, NeurIPS 2019
  batch,  // as layer, of each column over the rows; S. Ioffe, C. Szegedy, ICML 2015
  fixed,  // … with a mean and a variance that are given
  softmax,
  log_softmax,
  pass,   // x itself: for what follows a layer where that has its own already
  prelu,  // x where x > 0, else x · weight; K. He et al., Delving Deep into Rectifiers, 2015
};
inline constexpr int kNorms = 9;

// Whether it divides by a deviation, to which an eps is added.
constexpr bool has_eps(Norm norm) { return norm > Norm::none && norm < Norm::softmax; }
// Whether there is a weight: of what has an eps, where there is none, ones.
constexpr bool has_weight(Norm norm) { return norm < Norm::softmax || norm == Norm::prelu; }
// Whether an element of it comes of the same one alone.
constexpr bool is_elementwise(Norm norm) { return norm == Norm::fixed || norm >= Norm::pass; }
// Whether a row of it comes of more than one row, or of numbers for each column alone.
constexpr bool is_by_columns(Norm norm) { return norm == Norm::batch || is_elementwise(norm); }
// Whether its gradient is formed from its input.
constexpr bool reads_input(Norm norm) {
  return norm != Norm::none && norm != Norm::fixed && norm != Norm::pass;
}

}  // namespace fastmlp
