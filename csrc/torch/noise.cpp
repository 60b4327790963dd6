#include "torch/noise.h"

#include <algorithm>

#include "torch/lower.h"

namespace fastmlp {

bool has_dropout(const Program& program) {
  return std::any_of(program.layers.begin(), program.layers.end(),
                     [](const LayerOps& layer) { return layer.dropout > 0; });
}

void draw_noise(const Backend& backend, Dtype dtype, double dropout, int64_t elements, void* out) {
  const double keeps = 1 - dropout;
  // The quotient is formed in the dtype, as torch does.
  const double value = keeps == 0 ? 0
                       : dtype == Dtype::float32
                           ? static_cast<double>(1.0f / static_cast<float>(keeps))
                           : 1 / keeps;
  backend.draw_noise(dtype, keeps, value, elements, out);
}

Drawn draw_noise(const Arguments& a) {
  check_undrawn(a);  // so that an error leaves the generator as it was
  const Backend& backend = *backend_of(a.input.device().type());
  Drawn drawn;
  const int64_t batch = a.batch();
  const auto take = [&](const at::Tensor& operand) {
    drawn.operands.push_back(operand);
    return drawn.program.operands++;
  };
  for (int64_t l = 0; l < a.program.layers.size(); ++l) {
    const LayerOps& given = a.program.layers[l];
    LayerOps layer = given;
    for (int* const operand : {&layer.weight, &layer.bias, &layer.mean, &layer.variance}) {
      if (*operand >= 0) *operand = take(a.operands[*operand]);
    }
    if (given.dropout > 0) {
      const at::Tensor noise = backend.allocate({batch, a.out_features(l)}, a.input.scalar_type());
      draw_noise(backend, dtype_of(a.input), given.dropout, noise.numel(),
                 noise.mutable_data_ptr());
      layer.noise = take(noise);
      layer.dropout = 0;
    }
    drawn.program.layers.push_back(layer);
  }
  return drawn;
}

}  // namespace fastmlp
