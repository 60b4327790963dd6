// The kernels for any CPU.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cpu/isa/target.h"
#include "cpu/kernels/table.h"
#include "network/lists.h"

namespace fastmlp::cpu {
namespace generic {
#include "cpu/isa/tuning_generic.h"
#include "cpu/isa/vec_generic.h"
#include "cpu/kernels/kernels-inl.h"
}  // namespace generic

template <typename T>
const Kernels<T>& generic_kernels() {
  static const Kernels<T> table = generic::make_kernels<T>("generic");
  return table;
}
template const Kernels<float>& generic_kernels();
template const Kernels<double>& generic_kernels();
}  // namespace fastmlp::cpu
