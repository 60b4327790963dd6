// One matrix product c = a · b, cut into tiles: which form of kernel, how it is blocked, and what
// each thread does.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "cpu/kernels.h"
#include "cpu/record.h"
#include "cpu/threads.h"

namespace fastmlp::cpu {

template <typename T>
struct Matrix {
  const T* data = nullptr;
  int64_t row_stride = 0;
  int64_t col_stride = 1;
};

// Of one core, where the system tells; else half a megabyte, which nearly every processor of the
// last decade has.
inline int64_t second_level_cache_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return 512 << 10;
}

// 0 … total cut into `parts` runs that differ by one at most. 50 rows are 7 tiles of 7 or 8, not 6
// of 8 and one of 2.
class EvenParts {
 public:
  EvenParts() = default;
  EvenParts(int64_t total, int64_t parts)
      : parts_(parts), size_(parts ? total / parts : 0), longer_(parts ? total % parts : 0) {}
  int64_t count() const { return parts_; }
  int64_t begin(int64_t part) const { return part * size_ + std::min(part, longer_); }

 private:
  int64_t parts_ = 0, size_ = 0, longer_ = 0;  // the first `longer_` parts hold one more than size_
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Every element of c is summed over k in one order that depends on the form and on k alone, never
// on the tile it falls into or on the thread that computes it: results are bit-identical for any
// number of threads.
template <typename T>
class Product {
 public:
  // c[m, n] = a[m, k] · b[k, n]; c contiguous, b contiguous along its rows (col_stride 1) or its
  // columns (row_stride 1).
  Product(const Kernels<T>& kernels, int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b,
          T* c)
      : kernels_(&kernels), m_(m), n_(n), k_(k), a_(a), b_(b), c_(c) {
    // The dot form pays about 3 steps an element for its final sums, transposing b costs about k/4
    // steps a column.
    dot_ = b.col_stride != 1 && (m <= kernels.wide.rows || 12 * m < k);
    tile_ = dot_                     ? TileShape{kernels.dot_rows, 0}
            : m <= kernels.wide.rows ? kernels.wide
                                     : kernels.tall;
    depth_ = EvenParts(k, std::max<int64_t>(1, divide_up(k, dot_ ? kDotDepth : kGemmDepth)));
    const int64_t vectors = divide_up(n, kernels.width);
    columns_ = dot_ ? EvenParts(n, divide_up(n, kernels.dot_columns))
                    : EvenParts(vectors, divide_up(vectors, tile_.vectors));
    rows_ = EvenParts(m, divide_up(m, tile_.rows));
    // b has to be transposed, or its rows lie so far apart that each is a page of its own, and
    // enough tiles reuse it.
    pack_panels_ =
        !dot_ && (b.col_stride != 1 || (m >= 96 && b.row_stride > 2 * panel_elements(1)));
  }

  // Elements of the scratch buffer that compute() needs for each member: a panel of b, and a block
  // of rows of a.
  int64_t buffer_elements() const {
    return (pack_panels_ ? panel_elements(kGemmDepth) : 0) +
           (block_pays(columns_.count()) ? block_elements() : 0);
  }

  // This member's share of the tiles; done(row, rows, column, columns) is called for each one as
  // soon as it is whole, while it is still in the first-level cache: the epilogue.
  template <typename Done>
  void compute(Member member, T* buffer, const Done& done) const {
    if (m_ == 0 || n_ == 0) return;
    T* const block_buffer = pack_panels_ ? buffer + panel_elements(kGemmDepth) : buffer;
    const int64_t end = member.end(rows_.count() * columns_.count());
    for (int64_t unit = member.begin(rows_.count() * columns_.count()); unit < end;) {
      // A block of rows of a stays in the second-level cache while the panels of b pass over it.
      const int64_t first_tile = unit / (block_tiles() * columns_.count()) * block_tiles();
      const int64_t tiles = std::min(block_tiles(), rows_.count() - first_tile);
      const int64_t block_begin = first_tile * columns_.count();
      const int64_t stop = std::min(end, block_begin + tiles * columns_.count());
      const T* block = block_pays((stop - unit) / tiles) ? block_buffer : nullptr;
      for (int64_t part = 0; part < depth_.count(); ++part) {
        const int64_t k0 = depth_.begin(part), depth = depth_.begin(part + 1) - k0;
        if (block) pack_block(block_buffer, first_tile, tiles, k0, depth);
        for (int64_t u = unit; u < stop;) {
          const int64_t panel = (u - block_begin) / tiles;
          const int64_t panel_stop = std::min(stop, block_begin + (panel + 1) * tiles);
          const int64_t j = column(panel), columns = std::min(n_, column(panel + 1)) - j;
          const Matrix<T> b = panel_of_b(buffer, panel, k0, depth);
          for (; u < panel_stop; ++u) {
            const int64_t tile = u - block_begin - panel * tiles;
            const int64_t i = row(first_tile + tile), rows = row(first_tile + tile + 1) - i;
            const Matrix<T> a =
                block ? Matrix<T>{block + tile * tile_.rows * depth, 1, tile_.rows} : at(a_, i, k0);
            compute_tile(a, b, depth, c_ + i * n_ + j, rows, columns, k0 > 0);
            if (k0 + depth == k_) done(i, rows, j, columns);
          }
        }
      }
      unit = stop;
    }
  }

 private:
  // Longer sums are added up in blocks of at most so many terms: a tile's rows of a fill a quarter
  // of the first-level cache, and the error of one long chain of additions stays as small as that
  // of the BLAS libraries.
  static constexpr int64_t kGemmDepth = 384;
  static constexpr int64_t kDotDepth = 1024;  // a tile's rows of b: 20 KiB of float

  static Matrix<T> at(Matrix<T> matrix, int64_t i, int64_t j) {
    return {matrix.data + i * matrix.row_stride + j * matrix.col_stride, matrix.row_stride,
            matrix.col_stride};
  }

  int64_t row(int64_t tile) const { return rows_.begin(tile); }
  int64_t column(int64_t panel) const {
    return columns_.begin(panel) * (dot_ ? 1 : kernels_->width);
  }

  int64_t panel_elements(int64_t depth) const {
    return static_cast<int64_t>(tile_.vectors) * kernels_->width * depth;
  }

  // As many rows of a as fill half of the second-level cache over one depth (128 rows instead of
  // 512 lost 8 %).
  int64_t block_tiles() const {
    const int64_t row_bytes = kGemmDepth * static_cast<int64_t>(sizeof(T));
    return std::max<int64_t>(1, second_level_cache_bytes() / 2 / row_bytes / tile_.rows);
  }
  int64_t block_elements() const {
    return std::min(block_tiles(), rows_.count()) * tile_.rows * kGemmDepth;
  }

  // Copying a block of rows of a, tile by tile, pays where enough panels reuse it, and reading it
  // in place would touch a page for each element or row (84 GFLOP/s instead of 150 for a transposed
  // a of 1024 × 1024).
  bool block_pays(int64_t panels) const {
    constexpr int64_t far = 1024 / sizeof(T);
    return !dot_ && panels >= 6 && k_ >= 64 && std::max(a_.row_stride, a_.col_stride) >= far;
  }

  void pack_block(T* block, int64_t first_tile, int64_t tiles, int64_t k0, int64_t depth) const {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int64_t i = row(first_tile + tile), rows = row(first_tile + tile + 1) - i;
      const Matrix<T> from = at(a_, i, k0);
      T* to = block + tile * tile_.rows * depth;
      if (from.row_stride == 1) {
        kernels_->pack_rows(rows, depth, from.data, from.col_stride, to, tile_.rows);
      } else {
        kernels_->pack_transposed(rows, depth, from.data, from.row_stride, to, tile_.rows);
      }
    }
  }

  Matrix<T> panel_of_b(T* buffer, int64_t panel, int64_t k0, int64_t depth) const {
    const int64_t j = column(panel);
    const Matrix<T> from = at(b_, k0, j);
    if (!pack_panels_) return from;
    const int64_t width = column(panel + 1) - j, columns = std::min(n_ - j, width);
    if (from.col_stride == 1) {
      kernels_->pack_rows(columns, depth, from.data, from.row_stride, buffer, width);
    } else {
      kernels_->pack_transposed(columns, depth, from.data, from.col_stride, buffer, width);
    }
    return {buffer, width, 1};
  }

  void compute_tile(Matrix<T> a, Matrix<T> b, int64_t depth, T* c, int64_t rows, int64_t columns,
                    bool accumulate) const {
    if (dot_) {
      record_kernel<T>("dot", kernels_->isa, kernels_->dot_rows, kernels_->dot_columns);
      kernels_->dot[rows][columns](depth, a.data, a.row_stride, b.data, b.col_stride, c, n_,
                                   accumulate);
    } else {
      record_kernel<T>("gemm", kernels_->isa, tile_.rows, tile_.vectors * kernels_->width);
      kernels_->gemm[rows][divide_up(columns, kernels_->width)](depth, a.data, a.row_stride,
                                                                a.col_stride, b.data, b.row_stride,
                                                                c, n_, columns, accumulate);
    }
  }

  const Kernels<T>* kernels_;
  int64_t m_, n_, k_;
  Matrix<T> a_, b_;
  T* c_;
  bool dot_, pack_panels_;
  TileShape tile_;
  EvenParts rows_,
      columns_;  // tiles of rows; panels of columns, counted in vectors outside of the dot form
  EvenParts depth_;
};

}  // namespace fastmlp::cpu
