// The kernels for AVX2 and FMA: 16 vector registers.
#include <cstring>

#include "cpu/kernels/table.h"
#include "cpu/isa/target.h"

#ifdef FASTMLP_X86
FASTMLP_TARGET_BEGIN("avx2,fma")
namespace fastmlp::cpu {
namespace avx2 {
#include "cpu/isa/vec_avx2.h"
// The algorithms follow the vectors that they are written in.
#include "cpu/kernels/activation-inl.h"
#include "cpu/kernels/gemm-inl.h"
#include "cpu/kernels/mersenne-inl.h"
#include "images/resample-inl.h"
#include "cpu/kernels/sparse-inl.h"
#include "cpu/kernels/training-inl.h"
// … and these the table of them all.
#include "cpu/kernels/table-inl.h"
}  // namespace avx2

template <typename T>
const Kernels<T>& avx2_kernels() {
  static const Kernels<T> table = avx2::make_kernels<T, 6, 2, 3, 4, 3, 3, 8>("avx2");
  return table;
}
template const Kernels<float>& avx2_kernels();
template const Kernels<double>& avx2_kernels();
}  // namespace fastmlp::cpu
FASTMLP_TARGET_END
#endif
