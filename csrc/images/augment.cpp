#include "images/augment.h"

#include <ATen/ATen.h>

#include "cpu/max_threads.h"
#include "images/cpu_augment.h"
#include "images/resample.h"

namespace fastmlp {
namespace {

cpu::Images images_of(const at::Tensor& from, const at::Tensor& to) {
  TORCH_CHECK(from.scalar_type() == at::kByte && from.device().is_cpu() && from.dim() == 3 &&
                  from.is_contiguous(),
              "fastmlp: expected contiguous images, uint8 [n, H, W]");
  TORCH_CHECK(from.size(1) <= cpu::kMostPixels && from.size(2) <= cpu::kMostPixels,
              "fastmlp: expected images of at most ", cpu::kMostPixels, "×", cpu::kMostPixels,
              " pixels, got ", from.size(1), "×", from.size(2));
  return {from.size(0), from.size(1), from.size(2), from.const_data_ptr<uint8_t>(),
          to.mutable_data_ptr<uint8_t>()};
}

cpu::Elastic elastic_of(const Factors& factors, const cpu::Images& images) {
  const auto& [rows, columns, unit] = factors;
  for (const at::Tensor& factor : {rows, columns})
    TORCH_CHECK(factor.scalar_type() == at::kFloat && factor.dim() == 2 && factor.is_contiguous(),
                "fastmlp: expected contiguous factors, float32");
  TORCH_CHECK(rows.size(0) == images.height && columns.size(1) == images.width,
              "fastmlp: expected factors [H, r] and [s, W]");
  return {rows.const_data_ptr<float>(), columns.const_data_ptr<float>(), rows.size(1),
          columns.size(0), unit};
}

}  // namespace

at::Tensor deskew(const at::Tensor& images) {
  const at::Tensor result = at::empty_like(images);
  cpu::deskew(images_of(images, result), cpu::max_threads());
  return result;
}

at::Tensor distort(const at::Tensor& images, double rotation, double scale, double shear,
                   double translation, const std::optional<Factors>& elastic, int64_t key) {
  const at::Tensor result = at::empty_like(images);
  const cpu::Images both = images_of(images, result);
  cpu::distort(both,
               {rotation, scale, shear, translation,
                elastic ? elastic_of(*elastic, both) : cpu::Elastic{}, static_cast<uint64_t>(key)},
               cpu::max_threads());
  return result;
}

}  // namespace fastmlp
