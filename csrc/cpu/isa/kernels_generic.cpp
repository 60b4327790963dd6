// The kernels for any CPU.
#include <cmath>
#include <cstring>

#include "cpu/kernels/table.h"
#include "cpu/isa/target.h"

namespace fastmlp::cpu {
namespace generic {
#include "cpu/isa/vec_generic.h"
// The algorithms follow the vectors that they are written in.
#include "cpu/kernels/activation-inl.h"
#include "cpu/kernels/gemm-inl.h"
#include "cpu/kernels/mersenne-inl.h"
#include "images/resample-inl.h"
#include "cpu/kernels/sparse-inl.h"
#include "cpu/kernels/training-inl.h"
// … and these the table of them all.
#include "cpu/kernels/table-inl.h"
}  // namespace generic

template <typename T>
const Kernels<T>& generic_kernels() {
  static const Kernels<T> table = generic::make_kernels<T, 4, 2, 2, 3, 3, 3, 8>("generic");
  return table;
}
template const Kernels<float>& generic_kernels();
template const Kernels<double>& generic_kernels();
}  // namespace fastmlp::cpu
