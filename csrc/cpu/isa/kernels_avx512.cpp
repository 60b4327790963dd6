// The kernels for AVX-512: 32 vector registers.
#include <cstring>

#include "cpu/kernels/table.h"
#include "cpu/isa/target.h"

#ifdef FASTMLP_X86
FASTMLP_TARGET_BEGIN("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma")
namespace fastmlp::cpu {
namespace avx512 {
#include "cpu/isa/vec_avx512.h"
// The algorithms follow the vectors that they are written in.
#include "cpu/kernels/activation-inl.h"
#include "cpu/kernels/gemm-inl.h"
#include "cpu/kernels/mersenne-inl.h"
#include "images/resample-inl.h"
#include "cpu/kernels/sparse-inl.h"
#include "cpu/kernels/training-inl.h"
// … and these the table of them all.
#include "cpu/kernels/table-inl.h"
}  // namespace avx512

template <typename T>
const Kernels<T>& avx512_kernels() {
  static const Kernels<T> table = avx512::make_kernels<T, 8, 3, 4, 6, 5, 5, 16>("avx512");
  return table;
}
template const Kernels<float>& avx512_kernels();
template const Kernels<double>& avx512_kernels();
}  // namespace fastmlp::cpu
FASTMLP_TARGET_END
#endif
