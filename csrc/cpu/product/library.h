// Products by the BLAS library that torch itself uses: the large ones, where it is faster than the
// tiles here. Its bits may depend on the number of threads, and on where the operands lie, so it is
// left alone where torch is asked for deterministic algorithms.
#pragma once

#include <algorithm>

#include "cpu/kernels/table.h"
#include "cpu/product/matrix.h"

namespace fastmlp::cpu {

// Whether the rows, or the columns, of a matrix of this many lie one after the other, no two in one
// place. The library copies others, and what asks for memory may fail.
inline bool is_plain(Strides strides, int64_t rows, int64_t columns) {
  return (strides.col_stride == 1 && strides.row_stride >= columns) ||
         (strides.row_stride == 1 && strides.col_stride >= rows);
}

// Whether it is faster on this processor.
template <typename T>
bool library_pays(const Kernels<T>& kernels, const ProductShape& shape) {
  if (!is_plain(shape.a, shape.m, shape.k) || !is_plain(shape.b, shape.k, shape.n)) return false;
  const double multiplications =
      static_cast<double>(shape.m) * static_cast<double>(shape.n) * static_cast<double>(shape.k);
  const Tuning& tuning = kernels.tuning;
  return multiplications >= tuning.library_multiplications && shape.n >= tuning.library_columns &&
         std::min(shape.m, shape.k) >= tuning.library_least;
}

// Whether anybody may have it: off, all products are ours. For tests of those.
bool library_allowed();
void allow_library(bool on);

// c = a · b, or c += scale · a · b where it adds, by as many threads as torch uses.
template <typename T>
void multiply_by_library(const ProductShape& shape, const ProductMemory<T>& memory, bool adds);

}  // namespace fastmlp::cpu
