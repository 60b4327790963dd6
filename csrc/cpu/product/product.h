// One matrix product c = a · b in the form that suits its shape.
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
  // c[m, n] = a[m, k] · b[k, n]; c contiguous, b contiguous along its rows (col_stride 1) or its
  // columns (row_stride 1). Where a and c lie may be told later.
  Product(const Kernels<T>& kernels, int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b,
          T* c = nullptr)
      : column_(b.col_stride != 1 && n == 1),
        narrow_(column_ || (b.col_stride != 1 && NarrowProduct<T>::pays(kernels, m, n, k))) {
    const Matrix<T> b_transposed{b.data, b.col_stride, b.row_stride};
    if (column_) {
      narrow_product_ = {kernels, 1, m, k, b_transposed, a, c};
    } else if (narrow_) {
      narrow_product_ = {kernels, m, n, k, a, b_transposed, c};
    } else {
      tiled_product_ = {kernels, m, n, k, a, b, c};
    }
  }

  void place(const T* a, T* c) {
    if (column_) {
      narrow_product_.place_b(a, c);
    } else if (narrow_) {
      narrow_product_.place_a(a, c);
    } else {
      tiled_product_.place_a(a, c);
    }
  }

  // c += scale · a · b instead; of a b that is contiguous along its rows.
  void add_scaled(T scale) { tiled_product_.add_scaled(scale); }

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
  void compute(Member member, T* buffer, T* shared, const Done& done) const {
    if (column_) {
      narrow_product_.compute(member, buffer, [&done](int64_t, int64_t, int64_t i, int64_t rows) {
        done(i, rows, 0, 1);
      });
    } else if (narrow_) {
      narrow_product_.compute(member, buffer, done);
    } else {
      tiled_product_.compute(member, buffer, shared, done);
    }
  }

 private:
  bool column_;  // c is a single column: a row, by the transposed product
  bool narrow_;
  NarrowProduct<T> narrow_product_;
  TiledProduct<T> tiled_product_;
};

}  // namespace fastmlp::cpu
