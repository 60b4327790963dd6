// One matrix product c = a · b, cut into tiles: which form of kernel, how it is blocked, and what each thread does.
#pragma once

#include <algorithm>
#include <cstdint>

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

// Every element of c is summed over k in one order that depends on the form and on k alone, never on the tile it falls into
// or on the thread that computes it: results are bit-identical for any number of threads.
template <typename T>
class Product {
 public:
  // c[m, n] = a[m, k] · b[k, n]; b contiguous along its rows (col_stride 1) or along its columns (row_stride 1).
  Product(const Kernels<T>& kernels, int64_t m, int64_t n, int64_t k, Matrix<T> a, Matrix<T> b, T* c)
      : kernels_(&kernels), m_(m), n_(n), k_(k), a_(a), b_(b), c_(c) {
    choose_form();
    if (form_ == Form::dot) {
      tile_ = {kernels.dot_rows, 0};
      panels_ = divide_up(n, kernels.dot_columns);
      depth_ = kDotDepth;
    } else {
      tile_ = m <= kernels.wide.rows ? kernels.wide : kernels.tall;
      vectors_ = divide_up(n, kernels.width);
      panels_ = divide_up(vectors_, tile_.vectors);
      depth_ = kGemmDepth;
    }
    row_tiles_ = divide_up(m, tile_.rows);
  }

  // Elements of the buffer that pack() fills; 0: nothing to pack.
  int64_t packed_elements() const { return form_ == Form::packed ? vectors_ * kernels_->width * k_ : 0; }

  // This member's share of copying b into panels. All members must have done theirs before any computes.
  void pack(T* packed, Member member) {
    if (form_ != Form::packed) return;
    // Panels are cut along k, too, so that few panels still make enough pieces for all threads.
    const int64_t pieces = divide_up(k_, kPackDepth);
    for (int64_t piece = member.begin(panels_ * pieces); piece < member.end(panels_ * pieces); ++piece) {
      const int64_t panel = piece / pieces, k0 = piece % pieces * kPackDepth;
      const int64_t depth = std::min(kPackDepth, k_ - k0), j = column(panel);
      const int64_t n = std::min(n_, column(panel + 1)) - j;
      T* to = packed + j * k_ + k0 * panel_width(panel);
      if (b_.col_stride == 1) {
        kernels_->pack_rows(n, depth, b_.data + k0 * b_.row_stride + j, b_.row_stride, to, panel_width(panel));
      } else {
        kernels_->pack_transposed(n, depth, b_.data + j * b_.col_stride + k0, b_.col_stride, to, panel_width(panel));
      }
    }
  }

  void use_packed(const T* packed) { packed_ = packed; }

  // This member's share of the tiles; done(row, rows, column, columns) is called for each one as soon as it is whole, while
  // it is still in the first-level cache: the epilogue.
  template <typename Done>
  void compute(Member member, const Done& done) const {
    if (m_ == 0 || n_ == 0) return;
    const int64_t block_tiles = std::max<int64_t>(1, kBlockRows / tile_.rows);
    const int64_t end = member.end(row_tiles_ * panels_);
    for (int64_t unit = member.begin(row_tiles_ * panels_); unit < end;) {
      // A block of rows of a stays in the second-level cache while the panels of b pass over it.
      const int64_t first_tile = unit / (block_tiles * panels_) * block_tiles;
      const int64_t tiles = std::min(block_tiles, row_tiles_ - first_tile);
      const int64_t block_begin = first_tile * panels_;
      const int64_t stop = std::min(end, block_begin + tiles * panels_);
      int64_t k0 = 0;
      do {
        const int64_t depth = std::min(depth_, k_ - k0);
        for (int64_t u = unit; u < stop; ++u) {
          const int64_t panel = (u - block_begin) / tiles, tile = first_tile + (u - block_begin) % tiles;
          const int64_t i = row(tile), rows = row(tile + 1) - i;
          const int64_t j = column(panel), columns = std::min(n_, column(panel + 1)) - j;
          compute_tile(i, rows, panel, j, columns, k0, depth);
          if (k0 + depth == k_) done(i, rows, j, columns);
        }
        k0 += depth;
      } while (k0 < k_);
      unit = stop;
    }
  }

  double multiplications() const { return static_cast<double>(m_) * static_cast<double>(n_) * static_cast<double>(k_); }

 private:
  enum class Form { dot, direct, packed };

  static constexpr int64_t kGemmDepth = 512;  // a tile's rows of a: 16 KiB of float
  static constexpr int64_t kDotDepth = 1024;  // a tile's rows of b: 20 KiB of float
  static constexpr int64_t kBlockRows = 128;
  static constexpr int64_t kPackDepth = 256;

  static int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

  void choose_form() {
    if (b_.col_stride == 1) {
      // Packing pays once enough rows reuse it and the rows of b lie so far apart that each is a page of its own.
      form_ = m_ >= 96 && b_.row_stride > 2 * kernels_->tall.vectors * kernels_->width ? Form::packed : Form::direct;
    } else {
      // Packing costs about k/4 steps a column, the final sums of the dot form about 3 steps a row and column.
      form_ = m_ <= kernels_->wide.rows || 12 * m_ < k_ ? Form::dot : Form::packed;
    }
  }

  // First row of a tile and first column of a panel, spread evenly: 50 rows are 7 tiles of 7 or 8, not 6 of 8 and one of 2.
  int64_t row(int64_t tile) const { return tile * m_ / row_tiles_; }
  int64_t column(int64_t panel) const {
    return form_ == Form::dot ? panel * n_ / panels_ : panel * vectors_ / panels_ * kernels_->width;
  }
  int64_t panel_width(int64_t panel) const { return column(panel + 1) - column(panel); }

  void compute_tile(int64_t i, int64_t rows, int64_t panel, int64_t j, int64_t columns, int64_t k0, int64_t depth) const {
    const T* a = a_.data + i * a_.row_stride + k0 * a_.col_stride;
    T* c = c_ + i * n_ + j;
    if (form_ == Form::dot) {
      record_kernel<T>("dot", kernels_->isa, kernels_->dot_rows, kernels_->dot_columns);
      kernels_->dot[rows][columns](depth, a, a_.row_stride, b_.data + j * b_.col_stride + k0, b_.col_stride, c, n_, k0 > 0);
      return;
    }
    record_kernel<T>("gemm", kernels_->isa, tile_.rows, tile_.vectors * kernels_->width);
    const bool packed = form_ == Form::packed;
    const T* b = packed ? packed_ + j * k_ + k0 * panel_width(panel) : b_.data + k0 * b_.row_stride + j;
    kernels_->gemm[rows][divide_up(columns, kernels_->width)](depth, a, a_.row_stride, a_.col_stride, b,
                                                              packed ? panel_width(panel) : b_.row_stride, c, n_, columns,
                                                              k0 > 0);
  }

  const Kernels<T>* kernels_;
  int64_t m_, n_, k_;
  Matrix<T> a_, b_;
  T* c_;
  const T* packed_ = nullptr;
  Form form_;
  TileShape tile_;
  int64_t vectors_ = 0;
  int64_t panels_, row_tiles_, depth_;
};

}  // namespace fastmlp::cpu
