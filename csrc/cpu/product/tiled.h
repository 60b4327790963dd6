// The product of two matrices in the outer-product form: packing, blocking, and what each thread
// does.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels/table.h"
#include "cpu/product/matrix.h"
#include "cpu/record.h"
#include "cpu/team.h"

namespace fastmlp::cpu {

// Each element's sum over k is cut into parts that depend on k alone.
template <typename T>
class TiledProduct {
 public:
  TiledProduct() = default;
  // As of Product.
  TiledProduct(const Kernels<T>& kernels, const ProductShape& shape, bool adds)
      : kernels_(&kernels),
        m_(shape.m),
        n_(shape.n),
        k_(shape.k),
        a_(shape.a),
        b_(shape.b),
        adds_(adds) {
    const int64_t m = m_, n = n_, k = k_;
    const Tuning& tuning = kernels.tuning;
    const Strides b = b_;
    const int64_t vectors = divide_up(n, kernels.width), panel = tuning.many_rows.vectors;
    const bool odd = vectors > panel && vectors <= tuning.odd_vectors && vectors % panel == 1 &&
                     k <= tuning.odd_depth;
    tile_ = m <= tuning.few_rows.rows ? tuning.few_rows
            : odd                     ? tuning.odd_columns
                                      : tuning.many_rows;
    depth_ = EvenParts(k, std::max<int64_t>(1, divide_up(k, tuning.block_depth)));
    columns_ = EvenParts(vectors, divide_up(vectors, tile_.vectors));
    rows_ = EvenParts(m, divide_up(m, tile_.rows));
    const int64_t cache = second_level_cache_bytes();
    const int64_t row_bytes = tuning.block_depth * static_cast<int64_t>(sizeof(T));
    const auto block_bytes = static_cast<int64_t>(tuning.block_share * static_cast<double>(cache));
    block_tiles_ = std::max<int64_t>(1, block_bytes / row_bytes / tile_.rows);
    // A large c of small depth takes its time to be written to memory. Its rows are pages of their
    // own, so it is written along them: 0.41 ms instead of 0.66 for 2048 × 2048 of depth 3.
    is_outer_ = b.col_stride == 1 && k == 1;
    by_rows_ = b.col_stride == 1 && k <= 16 && m * n * static_cast<int64_t>(sizeof(T)) > cache / 2;
    // b has to be transposed, or its rows lie so far apart that each is a page of its own, and
    // enough tiles reuse it.
    const bool aliased = b.row_stride * static_cast<int64_t>(sizeof(T)) % tuning.aliased_bytes == 0;
    pack_panels_ = !by_rows_ && !is_outer_ &&
                   (b.col_stride != 1 || (m >= (aliased ? tile_.rows + 1 : tuning.packed_rows) &&
                                          b.row_stride > 4 * panel_elements(1)));
    group_ = b.col_stride == 1 ? tuning.panel_group : 1;
  }

  // Elements of the scratch buffer that compute() needs for each member, and of the one that all
  // members share.
  int64_t buffer_elements() const {
    return (pack_panels_ && !share_panels() ? group_ * panel_elements(block_depth()) : 0) +
           (block_pays(columns_.count()) ? block_elements() : 0);
  }
  int64_t shared_elements() const { return share_panels() ? 2 * shared_part_elements() : 0; }

  // This member's share of the tiles; every member has to call it. done(row, rows, column, columns)
  // is called for runs of tiles as soon as they are whole, while they are still in the first-level
  // cache: the epilogue.
  template <typename Done>
  void compute(Member member, const ProductMemory<T>& memory, T* buffer, T* shared,
               const Done& done) const {
    if (m_ == 0 || n_ == 0) return;
    const Operands o{{memory.a, a_}, {memory.b, b_}, memory.c, memory.scale};
    if (is_outer_) return compute_outer(member, o, done);
    if (by_rows_) return compute_rows(member, o, done);
    // A block of rows of a stays in the second-level cache while the panels of b pass over it.
    // Where there are several, each belongs to one member but for the tiles that even out the
    // shares. So it does where one would do but its rows are many: a division of the columns goes
    // through a cache line of every row of c where those are no whole number of lines, and two
    // cores writing to one line took 19 µs instead of 8 for 300 × 300 of depth 8.
    int64_t count = divide_up(rows_.count(), block_tiles_);
    const bool few_panels = columns_.count() < 4 * member.count;  // and these not all of one width
    if (count > 1 || (b_.col_stride == 1 && m_ >= 64 * member.count) ||
        (few_panels && rows_.count() >= 4 * member.count))
      count = divide_up(count, member.count) * member.count;
    const EvenParts blocks(rows_.count(), std::min(count, rows_.count()));
    for (int64_t part = 0; part < depth_.count(); ++part) {
      // The sums of one part are added to those of the parts before it.
      T* panels = share_panels() ? shared + part % 2 * shared_part_elements() : nullptr;
      if (panels) {
        if (part == 0) member.wait();  // for those who still read the panels of another product
        pack_shared(panels, o.b, part, member);
        member.wait();  // and the other half of the buffer is free again
      }
      for (int64_t index = 0; index < blocks.count(); ++index) {
        compute_block(member, o, buffer, panels, blocks.begin(index), blocks.begin(index + 1), part,
                      done);
      }
    }
  }

 private:
  struct Operands {
    Matrix<T> a, b;
    T* c;
    T scale;
  };

  // Some rows at a time, which the epilogue finds in the first-level cache.
  template <typename Done>
  void compute_outer(Member member, const Operands& o, const Done& done) const {
    record_kernel<T>("outer", kernels_->isa, 1, static_cast<int>(kernels_->width));
    const int64_t step = std::max<int64_t>(1, kernels_->tuning.epilogue_elements / n_),
                  end = member.end(m_);
    for (int64_t i = member.begin(m_); i < end; i += step) {
      const int64_t rows = std::min(step, end - i);
      kernels_->outer_product(rows, n_, o.a.at(i, 0).data, o.a.row_stride, o.b.data, o.c + i * n_,
                              n_, adds_, o.scale);
      done(i, rows, 0, n_);
    }
  }

  // Tile by tile along the rows of c.
  template <typename Done>
  void compute_rows(Member member, const Operands& o, const Done& done) const {
    for (int64_t tile = member.begin(rows_.count()); tile < member.end(rows_.count()); ++tile) {
      const int64_t i = row(tile), rows = row(tile + 1) - i;
      for (int64_t panel = 0; panel < columns_.count(); ++panel) {
        const int64_t j = column(panel), columns = std::min(n_, column(panel + 1)) - j;
        compute_tiles(1, 0, o.a.at(i, 0), o.b.at(0, j), k_, o.c + i * n_ + j, rows, columns, adds_,
                      o.scale);
        done(i, rows, j, columns);
      }
    }
  }

  // This member's tiles of one block of rows, over one part of k.
  template <typename Done>
  void compute_block(Member member, const Operands& o, T* buffer, const T* panels,
                     int64_t first_tile, int64_t end_tile, int64_t part, const Done& done) const {
    const int64_t tiles = end_tile - first_tile, block_begin = first_tile * columns_.count();
    const int64_t begin = std::max(block_begin, member.begin(rows_.count() * columns_.count()));
    const int64_t end = std::min(block_begin + tiles * columns_.count(),
                                 member.end(rows_.count() * columns_.count()));
    if (begin >= end) return;
    const int64_t k0 = depth_.begin(part), depth = depth_.begin(part + 1) - k0;
    T* const block = block_pays((end - begin) / tiles) ? buffer : nullptr;
    if (block) pack_block(block, o.a, first_tile, tiles, k0, depth);
    T* const panel_buffer = block_pays(columns_.count()) ? buffer + block_elements() : buffer;
    int64_t packed = 0, packed_end = 0;  // panels in the buffer
    for (int64_t unit = begin; unit < end;) {
      const int64_t panel = (unit - block_begin) / tiles;
      if (pack_panels_ && !panels && panel >= packed_end) {
        packed = panel;
        packed_end = std::min(panel + group_, (end - 1 - block_begin) / tiles + 1);
        pack_group(panel_buffer, o.b, packed, packed_end, k0, depth);
      }
      const int64_t panel_end = std::min(end, block_begin + (panel + 1) * tiles);
      const int64_t j = column(panel), columns = std::min(n_, column(panel + 1)) - j;
      const Matrix<T> b = panels         ? Matrix<T>{panels + j * depth, panel_width(panel), 1}
                          : pack_panels_ ? Matrix<T>{panel_buffer + (j - column(packed)) * depth,
                                                     panel_width(panel), 1}
                                         : o.b.at(k0, j);
      while (unit < panel_end) {
        const int64_t tile = unit - block_begin - panel * tiles, i = row(first_tile + tile);
        const int64_t rows = row(first_tile + tile + 1) - i;
        const int64_t count =
            std::min({panel_end - unit, kernels_->tuning.epilogue_tiles,
                      rows_.end_of_equals(first_tile + tile) - first_tile - tile});
        if (panels && panel + 1 < columns_.count())
          prefetch_slice(panels, panel + 1, depth, tile, tile + count, tiles);
        const Matrix<T> a =
            block ? Matrix<T>{block + tile * tile_.rows * depth, 1, tile_.rows} : o.a.at(i, k0);
        compute_tiles(count, block ? tile_.rows * depth : rows * a_.row_stride, a, b, depth,
                      o.c + i * n_ + j, rows, columns, adds_ || part > 0, o.scale);
        if (part + 1 == depth_.count()) done(i, count * rows, j, columns);
        unit += count;
      }
    }
  }

  // The next panel comes from the third-level cache in slices while this one is in use: waiting for
  // it cost 15 % of a product of 1024 × 1024.
  void prefetch_slice(const T* panels, int64_t panel, int64_t depth, int64_t first, int64_t end,
                      int64_t slices) const {
    constexpr int64_t line = 64 / sizeof(T);
    const T* begin = panels + column(panel) * depth;
    const int64_t lines = divide_up(panel_width(panel) * depth, line);
    for (int64_t l = lines * first / slices; l < lines * end / slices; ++l) {
      __builtin_prefetch(begin + l * line, 0, 2);
    }
  }

  // Where several blocks of rows use the panels of b, they are packed once, by all for all.
  bool share_panels() const { return pack_panels_ && n_ > 0 && rows_.count() > block_tiles_; }
  int64_t shared_part_elements() const { return column(columns_.count()) * block_depth(); }

  void pack_shared(T* panels, const Matrix<T>& b, int64_t part, Member member) const {
    const int64_t k0 = depth_.begin(part), depth = depth_.begin(part + 1) - k0;
    for (int64_t panel = member.begin(columns_.count()); panel < member.end(columns_.count());
         ++panel) {
      pack_panel(panels + column(panel) * depth, b, panel, k0, depth);
    }
  }

  // No part of k has more.
  int64_t block_depth() const { return std::min(kernels_->tuning.block_depth, k_); }
  int64_t row(int64_t tile) const { return rows_.begin(tile); }
  int64_t column(int64_t panel) const { return columns_.spread(panel) * kernels_->width; }

  int64_t panel_width(int64_t panel) const { return column(panel + 1) - column(panel); }

  int64_t panel_elements(int64_t depth) const {
    return static_cast<int64_t>(tile_.vectors) * kernels_->width * depth;
  }

  int64_t block_elements() const {
    return aligned<T>(std::min(block_tiles_, rows_.count()) * tile_.rows * block_depth());
  }

  // Whether copying a block of rows of a, tile by tile, does.
  bool block_pays(int64_t panels) const {
    constexpr auto element = static_cast<int64_t>(sizeof(T));
    const Tuning& tuning = kernels_->tuning;
    const bool is_far =
        a_.row_stride * element >= tuning.far_rows || a_.col_stride * element >= tuning.far_columns;
    return panels >= tuning.block_panels && k_ >= 64 && is_far;
  }

  void pack_block(T* block, const Matrix<T>& a, int64_t first_tile, int64_t tiles, int64_t k0,
                  int64_t depth) const {
    // A transposed a is read some rows at a time across all tiles, so that its memory is read in
    // runs.
    const int64_t step = a_.row_stride == 1 ? 16 : depth;
    for (int64_t p = 0; p < depth; p += step) {
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t i = row(first_tile + tile), rows = row(first_tile + tile + 1) - i;
        const Matrix<T> from = a.at(i, k0 + p);
        T* to = block + tile * tile_.rows * depth + p * tile_.rows;
        if (a_.row_stride == 1) {
          kernels_->pack_rows(rows, std::min(step, depth - p), from.data, from.col_stride, to,
                              tile_.rows);
        } else {
          kernels_->pack_transposed(rows, depth, from.data, from.row_stride, to, tile_.rows,
                                    tile_.rows);
        }
      }
    }
  }

  void pack_group(T* to, const Matrix<T>& b, int64_t first, int64_t last, int64_t k0,
                  int64_t depth) const {
    const int64_t step = b_.col_stride == 1 && last > first + 1 ? 16 : depth;
    for (int64_t p = 0; p < depth; p += step) {
      for (int64_t panel = first; panel < last; ++panel) {
        const int64_t j = column(panel), width = panel_width(panel);
        pack_panel(to + (j - column(first)) * depth + p * width, b, panel, k0 + p,
                   std::min(step, depth - p));
      }
    }
  }

  void pack_panel(T* to, const Matrix<T>& b, int64_t panel, int64_t k0, int64_t depth) const {
    const int64_t j = column(panel), width = panel_width(panel), columns = std::min(n_ - j, width);
    const Matrix<T> from = b.at(k0, j);
    if (from.col_stride == 1) {
      kernels_->pack_rows(columns, depth, from.data, from.row_stride, to, width);
    } else {
      kernels_->pack_transposed(columns, depth, from.data, from.col_stride, to, width, width);
    }
  }

  // Tiles below one another. In one chain where c is added to: each would round it anew.
  void compute_tiles(int64_t tiles, int64_t a_tile_stride, Matrix<T> a, Matrix<T> b, int64_t depth,
                     T* c, int64_t rows, int64_t columns, bool accumulate, T scale) const {
    record_kernel<T>("gemm", kernels_->isa, tile_.rows, tile_.vectors * kernels_->width);
    const auto gemm = kernels_->gemm[rows][divide_up(columns, kernels_->width)];
    const EvenParts chains(
        depth, adds_ ? 1 : std::max<int64_t>(1, divide_up(depth, kernels_->tuning.chain)));
    for (int64_t chain = 0; chain < chains.count(); ++chain) {
      const int64_t k = chains.begin(chain);
      gemm(tiles, a_tile_stride, chains.begin(chain + 1) - k, nullptr, a.at(0, k).data,
           a.row_stride, a.col_stride, b.at(k, 0).data, b.row_stride, c, n_, columns,
           accumulate || chain > 0, scale);
    }
  }

  const Kernels<T>* kernels_ = nullptr;
  int64_t m_ = 0, n_ = 0, k_ = 0;
  Strides a_, b_;
  bool adds_ = false;  // c += scale · a · b
  int64_t group_ = 1;
  int64_t block_tiles_ = 1;  // tiles of rows in a block
  bool is_outer_ = false, by_rows_ = false, pack_panels_ = false;
  TileShape tile_{};
  EvenParts rows_, columns_;  // tiles of rows; panels of columns, counted in vectors
  EvenParts depth_;
};

}  // namespace fastmlp::cpu
