// The kernels for AVX2 and FMA: 16 vector registers.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cpu/isa/target.h"
#include "cpu/kernels/table.h"
#include "network/lists.h"

#ifdef FASTMLP_X86
FASTMLP_TARGET_BEGIN("avx2,fma")
namespace fastmlp::cpu {
namespace avx2 {
#include "cpu/isa/tuning_avx2.h"
#include "cpu/isa/vec_avx2.h"
#include "cpu/kernels/kernels-inl.h"
}  // namespace avx2

template <typename T>
const Kernels<T>& avx2_kernels() {
  static const Kernels<T> table = avx2::make_kernels<T>("avx2");
  return table;
}
template const Kernels<float>& avx2_kernels();
template const Kernels<double>& avx2_kernels();
}  // namespace fastmlp::cpu
FASTMLP_TARGET_END
#endif
