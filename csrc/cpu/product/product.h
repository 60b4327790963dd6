// One matrix product c = a · b in the form that suits its shape: planned once from the shape, and
// computed wherever its matrices lie.
#pragma once

#include "cpu/product/library.h"
#include "cpu/product/narrow.h"
#include "cpu/product/tiled.h"

namespace fastmlp::cpu {

// Every element of c is summed over k in one order that depends on the shape and the processor
// alone, never on the tile it falls into or on the thread that computes it: results are
// bit-identical for any number of threads. But for those by the library, which nobody gets who does
// not ask for it.
template <typename T>
class Product {
 public:
  Product() = default;
  // adds: c += scale · a · b instead, where b is contiguous along its rows.
  Product(const Kernels<T>& kernels, const ProductShape& shape, bool may_use_library = false,
          bool adds = false)
      : isa_(kernels.isa),
        shape_(shape),
        adds_(adds),
        epilogue_elements_(kernels.tuning.epilogue_elements),
        by_library_(may_use_library && library_pays(kernels, shape)),
        column_(shape.b.col_stride != 1 && shape.n == 1),
        narrow_(column_ || (shape.b.col_stride != 1 &&
                            NarrowProduct<T>::pays(kernels, shape.m, shape.n, shape.k))) {
    const Strides b_transposed{shape.b.col_stride, shape.b.row_stride};
    if (by_library_) {
      // nothing to plan
    } else if (column_) {
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
    if (by_library_) return 0;
    return narrow_ ? narrow_product_.buffer_elements() : tiled_product_.buffer_elements();
  }
  int64_t shared_elements() const {
    return by_library_ || narrow_ ? 0 : tiled_product_.shared_elements();
  }
  bool is_by_library() const { return by_library_; }

  // All of it by the library, whole rows of c by the epilogue: for the one who makes the team, with
  // run(stage) to have stage(member) done by all of its members.
  template <typename Stages, typename Done>
  void compute_by_library(const Stages& stages, const ProductMemory<T>& memory,
                          const Done& done) const {
    record_kernel<T>("library", isa_, static_cast<int>(shape_.m), static_cast<int>(shape_.n));
    multiply_by_library(shape_, memory, adds_);
    const int64_t step = std::max<int64_t>(1, epilogue_elements_ / shape_.n);
    stages.run([&](Member member) {
      const int64_t end = member.end(shape_.m);
      for (int64_t i = member.begin(shape_.m); i < end; i += step)
        done(i, std::min(step, end - i), 0, shape_.n);
    });
  }

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
  const char* isa_ = nullptr;
  ProductShape shape_;
  bool adds_ = false;
  int64_t epilogue_elements_ = 0;  // between two calls of the epilogue
  bool by_library_ = false;
  bool column_ = false;  // c is a single column: a row, by the transposed product
  bool narrow_ = false;
  NarrowProduct<T> narrow_product_;
  TiledProduct<T> tiled_product_;
};

}  // namespace fastmlp::cpu
