// The kernels for AVX-512: 32 vector registers.
#include <cmath>
#include <cstring>
#include <type_traits>

#include "cpu/isa/target.h"
#include "cpu/kernels/table.h"
#include "network/lists.h"

#ifdef FASTMLP_X86
FASTMLP_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
namespace fastmlp::cpu {
namespace avx512 {
#include "cpu/isa/tuning_avx512.h"
#include "cpu/isa/vec_avx512.h"
#include "cpu/kernels/kernels-inl.h"
}  // namespace avx512

template <typename T>
const Kernels<T>& avx512_kernels() {
  static const Kernels<T> table = avx512::make_kernels<T>("avx512");
  return table;
}
template const Kernels<float>& avx512_kernels();
template const Kernels<double>& avx512_kernels();
}  // namespace fastmlp::cpu
FASTMLP_TARGET_END
#endif
