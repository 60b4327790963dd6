// The norms of a row: what there is to know of them beside their formulas, which stand in
// cpu/kernels/norm-inl.h.
#pragma once

#include <cstdint>

namespace fastmlp {

enum class Norm : uint8_t {
  none,
  layer,  // (x - mean) / sqrt(variance + eps); J. L. Ba et al., Layer Normalization, 2016
  rms,    // x / sqrt(mean of x² + eps); B. Zhang, R. Sennrich, NeurIPS 2019
};
inline constexpr int kNorms = 3;

}  // namespace fastmlp
