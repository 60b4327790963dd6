// fastmlp.data's deskew and distort, on tensors.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace fastmlp {

// images: uint8 [n, H, W], contiguous, on the CPU; the result likewise.
at::Tensor deskew(const at::Tensor& images);

// rows [H, r], columns [s, W], unit: cpu::Elastic.
using Factors = std::tuple<at::Tensor, at::Tensor, double>;

// Angles in radians; key: what all numbers are drawn from.
at::Tensor distort(const at::Tensor& images, double rotation, double scale, double shear,
                   double translation, const std::optional<Factors>& elastic, int64_t key);

}  // namespace fastmlp
