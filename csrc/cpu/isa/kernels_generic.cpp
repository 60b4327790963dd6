// The kernels for any CPU.
#include <cmath>
#include <cstring>
#include <limits>
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
  static const Kernels<T> table = [] {
    Kernels<T> kernels = generic::make_kernels<T>("generic");
#ifdef FASTMLP_X86
    // Who forces these kernels on a processor that has better ones wants to see them at work.
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      kernels.tuning.library_multiplications = std::numeric_limits<double>::infinity();
#endif
    return kernels;
  }();
  return table;
}
template const Kernels<float>& generic_kernels();
template const Kernels<double>& generic_kernels();
}  // namespace fastmlp::cpu
