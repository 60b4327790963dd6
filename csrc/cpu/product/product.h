// One matrix product c = a · b in the form that suits its shape: planned once from the shape, and
// computed wherever its matrices lie.
#pragma once

#include "cpu/product/narrow.h"
#include "cpu/product/tiled.h"

namespace fastmlp::cpu {

// Every element of c is summed over k in one order that depends on the shape and the processor
// alone, never on the tile it falls into or on the thread that computes it: results are
// bit-identical for any number of threads.
template <typename T>
class Product {
 public:
  Product() = default;
  // adds: c += scale · a · b instead, where b is contiguous along its rows.
  Product(const Kernels<T>& kernels, const ProductShape& shape, bool adds = false)
      : column_(shape.b.col_stride != 1 && shape.n == 1),
        narrow_(column_ || (shape.b.col_stride != 1 &&
                            NarrowProduct<T>::pays(kernels, shape.m, shape.n, shape.k))) {
    const Strides b_transposed{shape.b.col_stride, shape.b.row_stride};
    if (column_) {
      narrow_product_ = {kernels, {1, shape.m, shape.k, b_transposed, shape.a}};
    } else if (narrow_) {
      narrow_product_ = {kernels, {shape.m, shape.n, shape.k, shape.a, b_transposed}};
    } else {
      tiled_product_ = {kernels, shape, adds};
    }
  }

  // Elements of the scratch buffer that compute() needs for each member, and of the one that all
  // members share.
  int64_t buffer_elements() const {
    return narrow_ ? narrow_product_.buffer_elements() : tiled_product_.buffer_elements();
  }
  int64_t shared_elements() const { return narrow_ ? 0 : tiled_product_.shared_elements(); }

  // This member's share; every member has to call it. done(row, rows, column, columns) is called
  // for pieces of c as soon as they are whole, while they are still in the first-level cache: the
  // epilogue.
  template <typename Done>
  void compute(Member member, const ProductMemory<T>& memory, T* buffer, T* shared,
               const Done& done) const {
    if (column_) {
      narrow_product_.compute(
          member, {memory.b, memory.a, memory.c}, buffer,
          [&done](int64_t, int64_t, int64_t i, int64_t rows) { done(i, rows, 0, 1); });
    } else if (narrow_) {
      narrow_product_.compute(member, memory, buffer, done);
    } else {
      tiled_product_.compute(member, memory, buffer, shared, done);
    }
  }

 private:
  bool column_ = false;  // c is a single column: a row, by the transposed product
  bool narrow_ = false;
  NarrowProduct<T> narrow_product_;
  TiledProduct<T> tiled_product_;
};

}  // namespace fastmlp::cpu
