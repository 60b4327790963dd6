// The product of a matrix of few rows with the transpose of another: a layer's forward at small
// batches.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels/table.h"
#include "cpu/product/matrix.h"
#include "cpu/record.h"
#include "cpu/team.h"

namespace fastmlp::cpu {

// c[m, n] = a[m, k] · b[n, k]ᵀ without a copy of b, which is the large operand. Two forms:
//
// - dot: tiles of dot products, for the fewest rows. Pays for the sums of lanes at their end.
// - turned: cᵀ = b · aᵀ by the outer-product tiles, with aᵀ packed and the tiles turned on their
//   way to c. 1.1 to 1.3 times as fast at 32 to 128 rows as packing bᵀ or as dot products.
//
// A turned sum adds its terms in the order of the tiled product. Rows beyond whole vectors, where
// they are few, are dot products.
template <typename T>
class NarrowProduct {
 public:
  NarrowProduct() = default;
  // The strides of b are those of b[n, k].
  NarrowProduct(const Kernels<T>& kernels, const ProductShape& shape)
      : kernels_(&kernels), m_(shape.m), n_(shape.n), k_(shape.k), a_(shape.a), b_(shape.b) {
    const int64_t m = m_, n = n_, k = k_;
    const Tuning& tuning = kernels.tuning;
    turned_ = turning_pays(kernels, m, n, k) ? turned_rows(kernels, m) : 0;
    const int64_t vectors = divide_up(turned_, kernels.width);
    panels_ = EvenParts(vectors, divide_up(vectors, tuning.many_rows.vectors));
    dot_columns_ = m == 1 ? tuning.row_columns : tuning.dot_columns;
    features_ = EvenParts(n, divide_up(n, turned_ ? tuning.many_rows.rows : dot_columns_));
    depth_ = EvenParts(k, std::max<int64_t>(1, divide_up(k, tuning.chain)));
    dot_depth_ = EvenParts(k, std::max<int64_t>(1, divide_up(k, tuning.dot_depth)));
    rows_ = EvenParts(m - turned_, divide_up(m - turned_, tuning.dot_rows));
  }

  // Whether it is faster than the tiled product, which packs bᵀ.
  static bool pays(const Kernels<T>& kernels, int64_t m, int64_t n, int64_t k) {
    // The dot form pays about 3 steps an element for its final sums, transposing b costs about k/4
    // steps a column.
    return m <= kernels.tuning.few_rows.rows || 12 * m < k || turning_pays(kernels, m, n, k);
  }

  // Of the scratch buffer that compute() needs for each member.
  int64_t buffer_elements() const { return turned_ ? tile_elements() + tile_stride() * k_ : 0; }

  // This member's share, whole columns of c; every member has to call it. done(row, rows, column,
  // columns) is called for groups of columns as soon as they are whole, while they are still in the
  // first-level cache: the epilogue. (After every dot tile it took longer than the sums: reading by
  // vectors what was just written by elements waits for the writes.)
  template <typename Done>
  void compute(Member member, const ProductMemory<T>& memory, T* buffer, const Done& done) const {
    if (m_ == 0) return;
    const Operands o{{memory.a, a_}, {memory.b, b_}, memory.c};
    const int64_t begin = member.begin(features_.count()), end = member.end(features_.count());
    if (begin >= end) return;
    T* const tile = buffer;
    T* const panels = buffer + tile_elements();
    if (turned_) pack(o.a, panels);
    const int64_t step = std::max<int64_t>(2, kernels_->tuning.epilogue_columns / features_.size());
    for (int64_t first = begin; first < end; first += step) {
      const int64_t last = std::min(first + step, end);
      if (turned_) {
        const int64_t group = kernels_->tuning.turned_tiles;
        for (int64_t feature = first; feature < last; feature += group)
          turn(o, panels, tile, feature, std::min(feature + group, last));
      } else {
        for (int64_t feature = first; feature < last; ++feature) dot(o, feature);
      }
      const int64_t j = features_.begin(first), columns = features_.begin(last) - j;
      done(0, m_, j, columns);
    }
  }

 private:
  struct Operands {
    Matrix<T> a, b;
    T* c;
  };

  // Rows beyond whole vectors are worth a vector of their own unless a dot tile holds them.
  static int64_t turned_rows(const Kernels<T>& kernels, int64_t m) {
    const int64_t beyond = m % kernels.width;
    return beyond <= kernels.tuning.dot_rows ? m - beyond : m;
  }

  static bool turning_pays(const Kernels<T>& kernels, int64_t m, int64_t n, int64_t k) {
    if (m < kernels.width ||
        m * k * static_cast<int64_t>(sizeof(T)) > second_level_cache_bytes() / 2)
      return false;
    // Turning the tiles and packing a, once for each of two threads, against transposing b.
    if (12 * m >= k && m * (n + 2 * k) >= n * k) return false;
    const Tuning& tuning = kernels.tuning;
    const int64_t turned = turned_rows(kernels, m);
    const double vectors = static_cast<double>(divide_up(turned, kernels.width));
    const double cost = vectors * kernels.width / tuning.turned_peak +
                        static_cast<double>(m - turned) / tuning.few_dots_peak + 2;
    return cost < static_cast<double>(m) / tuning.dot_peak;
  }

  int64_t tile_stride() const { return panels_.total() * kernels_->width; }
  int64_t tile_elements() const {
    return std::min(kernels_->tuning.turned_tiles, features_.count()) * features_.longest() *
           tile_stride();
  }
  int64_t row(int64_t panel) const { return panels_.begin(panel) * kernels_->width; }
  int64_t panel_width(int64_t panel) const { return row(panel + 1) - row(panel); }
  int64_t panel_rows(int64_t panel) const { return std::min(turned_, row(panel + 1)) - row(panel); }

  void pack(const Matrix<T>& a, T* panels) const {
    for (int64_t panel = 0; panel < panels_.count(); ++panel) {
      const int64_t i = row(panel), width = panel_width(panel);
      kernels_->pack_transposed(panel_rows(panel), k_, a.at(i, 0).data, a.row_stride,
                                panels + i * k_, width, width);
    }
  }

  // The columns of some tiles, which fill cache lines of each row of c where they are aligned. Part
  // by part of the depth, so that what is read of b stays in the first-level cache for all panels,
  // and of a panel for all tiles.
  void turn(const Operands& o, const T* panels, T* tile, int64_t first, int64_t last) const {
    const int64_t j = features_.begin(first), columns = features_.begin(last) - j;
    for (int64_t part = 0; part < depth_.count(); ++part) {
      const int64_t k0 = depth_.begin(part), depth = depth_.begin(part + 1) - k0;
      for (int64_t panel = 0; panel < panels_.count(); ++panel) {
        const int64_t width = panel_width(panel);
        record_kernel<T>("turned", kernels_->isa, kernels_->tuning.many_rows.rows,
                         kernels_->tuning.many_rows.vectors * kernels_->width);
        for (int64_t feature = first; feature < last;) {
          const int64_t end = std::min(last, features_.end_of_equals(feature));
          const int64_t from = features_.begin(feature), rows = features_.begin(feature + 1) - from;
          const Matrix<T> b = o.b.at(from, k0);
          kernels_->gemm[rows][width / kernels_->width](
              end - feature, rows * b.row_stride, depth, nullptr, b.data, b.row_stride,
              b.col_stride, panels + row(panel) * k_ + k0 * width, width,
              tile + (from - j) * tile_stride() + row(panel), tile_stride(), width, part > 0, T(1));
          feature = end;
        }
      }
    }
    for (int64_t feature = first; feature < last; ++feature) dot(o, feature);
    kernels_->pack_transposed(columns, turned_, tile, tile_stride(), o.c + j, n_, columns);
  }

  // The dot products of one tile of columns with the rows that are not turned.
  void dot(const Operands& o, int64_t feature) const {
    if (rows_.count() == 0) return;
    const int64_t from = features_.begin(feature), features = features_.begin(feature + 1) - from;
    const EvenParts groups(features, divide_up(features, dot_columns_));
    for (int64_t part = 0; part < dot_depth_.count(); ++part) {
      const int64_t k0 = dot_depth_.begin(part);
      for (int64_t group = 0; group < groups.count(); ++group) {
        const int64_t j = from + groups.begin(group), columns = from + groups.begin(group + 1) - j;
        const Matrix<T> b = o.b.at(j, k0);
        for (int64_t tile = 0; tile < rows_.count(); ++tile) {
          const int64_t i = turned_ + rows_.begin(tile);
          const Matrix<T> a = o.a.at(i, k0);
          record_kernel<T>("dot", kernels_->isa, kernels_->tuning.dot_rows, dot_columns_);
          kernels_->dot[turned_ + rows_.begin(tile + 1) - i][columns](
              dot_depth_.begin(part + 1) - k0, a.data, a.row_stride, b.data, b.row_stride,
              o.c + i * n_ + j, n_, part > 0);
        }
      }
    }
  }

  const Kernels<T>* kernels_ = nullptr;
  int64_t m_ = 0, n_ = 0, k_ = 0;
  Strides a_, b_;
  int64_t turned_ = 0;  // rows of a, the first ones
  int64_t dot_columns_ = 0;
  EvenParts panels_;             // vectors of turned rows
  EvenParts features_;           // columns of c, by tiles
  EvenParts depth_, dot_depth_;  // k, of the turned tiles and of the dot tiles
  EvenParts rows_;               // the other rows, by dot tiles
};

}  // namespace fastmlp::cpu
