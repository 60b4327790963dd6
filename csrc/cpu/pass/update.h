// The optimizer's update of a piece of one parameter.
#pragma once

#include "cpu/kernels/table.h"

namespace fastmlp::cpu {

// [rows, columns] from element `begin` on, rows a stride apart. gradient_scale: of its clipping.
template <typename T>
void update(const Kernels<T>& kernels, const Update<T>& u, double gradient_scale, int64_t begin,
            int64_t rows, int64_t columns, int64_t stride) {
  const T scale = static_cast<T>(u.maximize ? -gradient_scale : gradient_scale);
  const auto at = [begin](T* pointer) { return pointer ? pointer + begin : nullptr; };
  if (u.kind == OptimizerKind::sgd) {
    kernels.sgd(rows, columns, stride, u.parameter + begin, u.gradient + begin, at(u.momentum), u,
                scale);
  } else {
    kernels.adam(rows, columns, stride, u.parameter + begin, u.gradient + begin, at(u.momentum),
                 at(u.square), at(u.square_max), u, scale);
  }
}

}  // namespace fastmlp::cpu
