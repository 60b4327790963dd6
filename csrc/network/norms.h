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
  pass,  // x itself: for what follows a layer where that has its own already
};
inline constexpr int kNorms = 8;

// Whether it is multiplied by a weight, where there is none by ones.
constexpr bool has_weight(Norm norm) { return norm < Norm::softmax; }
// Whether a row of it comes of more than one row, or of numbers for each column alone.
constexpr bool is_by_columns(Norm norm) {
  return norm == Norm::batch || norm == Norm::fixed || norm == Norm::pass;
}
// Whether an element of it comes of the same one alone.
constexpr bool is_elementwise(Norm norm) { return norm == Norm::fixed || norm == Norm::pass; }
// Whether its gradient is formed from its input.
constexpr bool reads_input(Norm norm) { return norm != Norm::none && !is_elementwise(norm); }

}  // namespace fastmlp
