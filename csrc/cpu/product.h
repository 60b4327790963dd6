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

// 0 … total cut into `parts` runs that differ by one at most: 50 rows are 7 tiles of 7 or 8, not 6
// of 8 and one of 2.
class EvenParts {
 public:
  EvenParts() = default;
  EvenParts(int64_t total, int64_t parts)
      : total_(total),
        parts_(parts),
        size_(parts ? total / parts : 0),
        longer_(parts ? total % parts : 0) {}
  int64_t count() const { return parts_; }
  // The longer runs first: no division, for what is asked of every tile.
  int64_t begin(int64_t part) const { return part * size_ + std::min(part, longer_); }
  // The longer runs spread among the others, so that few runs divide evenly between threads as
  // well.
  int64_t spread(int64_t part) const { return part * total_ / parts_; }

 private:
  int64_t total_ = 0, parts_ = 0, size_ = 0,
          longer_ = 0;  // `longer_` runs hold one more than size_
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

  // Elements of the scratch buffer that compute() needs for each member, and of the one that all
  // members share.
  int64_t buffer_elements() const {
    return (pack_panels_ && !share_panels() ? panel_elements(kGemmDepth) : 0) +
           (block_pays(columns_.count()) ? block_elements() : 0);
  }
  int64_t shared_elements() const { return share_panels() ? 2 * shared_part_elements() : 0; }

  // This member's share of the tiles; every member has to call it. done(row, rows, column, columns)
  // is called for each tile as soon as it is whole, while it is still in the first-level cache: the
  // epilogue.
  template <typename Done>
  void compute(Member member, T* buffer, T* shared, const Done& done) const {
    if (m_ == 0 || n_ == 0) return;
    // A block of rows of a stays in the second-level cache while the panels of b pass over it.
    // Where there are several, each belongs to one member alone, which then copies it alone.
    int64_t count = divide_up(rows_.count(), block_tiles());
    if (count > 1) count = divide_up(count, member.count) * member.count;
    const EvenParts blocks(rows_.count(), std::min(count, rows_.count()));
    for (int64_t part = 0; part < depth_.count(); ++part) {
      // The sums of one part are added to those of the parts before it.
      T* panels = share_panels() ? shared + part % 2 * shared_part_elements() : nullptr;
      if (panels) {
        if (part == 0) member.wait();  // for those who still read the panels of another product
        pack_shared(panels, part, member);
        member.wait();  // and the other half of the buffer is free again
      }
      for (int64_t index = 0; index < blocks.count(); ++index) {
        compute_block(member, buffer, panels, blocks.begin(index), blocks.begin(index + 1), part,
                      done);
      }
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

  // This member's tiles of one block of rows, over one part of k.
  template <typename Done>
  void compute_block(Member member, T* buffer, const T* panels, int64_t first_tile,
                     int64_t end_tile, int64_t part, const Done& done) const {
    const int64_t tiles = end_tile - first_tile, block_begin = first_tile * columns_.count();
    const int64_t begin = std::max(block_begin, member.begin(rows_.count() * columns_.count()));
    const int64_t end = std::min(block_begin + tiles * columns_.count(),
                                 member.end(rows_.count() * columns_.count()));
    if (begin >= end) return;
    const int64_t k0 = depth_.begin(part), depth = depth_.begin(part + 1) - k0;
    T* const block = block_pays((end - begin) / tiles) ? buffer : nullptr;
    if (block) pack_block(block, first_tile, tiles, k0, depth);
    T* const panel_buffer = block_pays(columns_.count()) ? buffer + block_elements() : buffer;
    for (int64_t unit = begin; unit < end;) {
      const int64_t panel = (unit - block_begin) / tiles;
      const int64_t panel_end = std::min(end, block_begin + (panel + 1) * tiles);
      const int64_t j = column(panel), columns = std::min(n_, column(panel + 1)) - j;
      const Matrix<T> b = panels         ? Matrix<T>{panels + j * depth, panel_width(panel), 1}
                          : pack_panels_ ? pack_panel(panel_buffer, panel, k0, depth)
                                         : at(b_, k0, j);
      for (; unit < panel_end; ++unit) {
        const int64_t tile = unit - block_begin - panel * tiles;
        if (panels && panel + 1 < columns_.count())
          prefetch_slice(panels, panel + 1, depth, tile, tiles);
        const int64_t i = row(first_tile + tile), rows = row(first_tile + tile + 1) - i;
        const Matrix<T> a =
            block ? Matrix<T>{block + tile * tile_.rows * depth, 1, tile_.rows} : at(a_, i, k0);
        compute_tile(a, b, depth, c_ + i * n_ + j, rows, columns, part > 0);
        if (part + 1 == depth_.count()) done(i, rows, j, columns);
      }
    }
  }

  // The next panel comes from the third-level cache in slices while this one is in use: waiting for
  // it cost 15 % of a product of 1024 × 1024.
  void prefetch_slice(const T* panels, int64_t panel, int64_t depth, int64_t slice,
                      int64_t slices) const {
    constexpr int64_t line = 64 / sizeof(T);
    const T* begin = panels + column(panel) * depth;
    const int64_t lines = divide_up(panel_width(panel) * depth, line);
    for (int64_t l = lines * slice / slices; l < lines * (slice + 1) / slices; ++l) {
      __builtin_prefetch(begin + l * line, 0, 2);
    }
  }

  // Where several blocks of rows use the panels of b, they are packed once, by all for all.
  bool share_panels() const { return pack_panels_ && rows_.count() > block_tiles(); }
  int64_t shared_part_elements() const { return column(columns_.count()) * kGemmDepth; }

  void pack_shared(T* panels, int64_t part, Member member) const {
    const int64_t k0 = depth_.begin(part), depth = depth_.begin(part + 1) - k0;
    for (int64_t panel = member.begin(columns_.count()); panel < member.end(columns_.count());
         ++panel) {
      pack_panel(panels + column(panel) * depth, panel, k0, depth);
    }
  }

  int64_t row(int64_t tile) const { return rows_.begin(tile); }
  int64_t column(int64_t panel) const {
    return columns_.spread(panel) * (dot_ ? 1 : kernels_->width);
  }

  int64_t panel_width(int64_t panel) const { return column(panel + 1) - column(panel); }

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
    // A transposed a is read some rows at a time across all tiles, so that its memory is read in
    // runs.
    const int64_t step = a_.row_stride == 1 ? 16 : depth;
    for (int64_t p = 0; p < depth; p += step) {
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t i = row(first_tile + tile), rows = row(first_tile + tile + 1) - i;
        const Matrix<T> from = at(a_, i, k0 + p);
        T* to = block + tile * tile_.rows * depth + p * tile_.rows;
        if (a_.row_stride == 1) {
          kernels_->pack_rows(rows, std::min(step, depth - p), from.data, from.col_stride, to,
                              tile_.rows);
        } else {
          kernels_->pack_transposed(rows, depth, from.data, from.row_stride, to, tile_.rows);
        }
      }
    }
  }

  Matrix<T> pack_panel(T* to, int64_t panel, int64_t k0, int64_t depth) const {
    const int64_t j = column(panel), width = panel_width(panel), columns = std::min(n_ - j, width);
    const Matrix<T> from = at(b_, k0, j);
    if (from.col_stride == 1) {
      kernels_->pack_rows(columns, depth, from.data, from.row_stride, to, width);
    } else {
      kernels_->pack_transposed(columns, depth, from.data, from.col_stride, to, width);
    }
    return {to, width, 1};
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
