// What products and teams are tuned by: found by measurement, not by thought. Each instruction set
// has its own values in tuning_<isa>.h; what stands here came out alike on all of them so far.
// (What a sparse input costs is told in dense products, in sparse_input.h.)
// `python benchmarks/tune.py` tries other numbers; after a change of the tiles,
// `python benchmarks/compare.py HEAD --shapes 'named,grid'` measures every row against the build of
// the last commit; with FASTMLP_ISA and FASTMLP_L2_BYTES for other machines than the one at hand.
#pragma once

#include <cstdint>

namespace fastmlp::cpu {

struct TileShape {
  int rows;
  int vectors;  // of the kernels' width
};

struct Tuning {
  // The gemm tile of products with many rows, and with few.
  TileShape many_rows{}, few_rows{};
  // … and with many whose columns are one vector more than whole panels, up to so many, as a panel
  // of one vector takes two thirds of the time of two; of so small a depth that a panel, which is
  // wider, fits the first-level cache.
  TileShape odd_columns{};
  int64_t odd_vectors = 0, odd_depth = 256;
  // A tile of c comes from memory while its sums are formed, one vector of columns after the other:
  // all at once held up the lines of b behind them, 1 % of a product of 1024 × 1024. But each part
  // is the end of a loop that the processor does not foresee, and smaller tiles lose more by that.
  bool fetches_tile_at_once = false;
  // A tile of dot products, and one of a single row.
  int dot_rows = 0, dot_columns = 0, row_columns = 0;

  // A second thread costs a few microseconds to wake and to wait for: it is worth that from about
  // so many multiplications, or elements of simple work, a thread on.
  double multiplications_per_thread = 200e3;
  int64_t elements_per_thread = 20000;
  // The same of pixels that are moved and interpolated: some ten microseconds.
  int64_t pixels_per_thread = 8000;
  // An element of a row that is gathered from anywhere in memory, in those of simple work.
  int64_t gathered_element = 2;

  // Products are formed over blocks of so many terms of their sums at most: a tile's rows of a fill
  // a quarter of the first-level cache.
  int64_t block_depth = 384;
  // Terms that are added up one after the other, at most. The error of a chain grows with its
  // length, and BLAS libraries cut theirs at 128 to 384: one of 300 had twice the error of theirs.
  // Between two chains a tile of c is written and read, which takes 1 to 3 % of a product. (Both in
  // one call of the kernel cost as much, as its loops ran short of registers.)
  int64_t chain = 192;
  // The part of the second-level cache that a block of rows of a fills over one depth (128 rows
  // instead of 512 lost 8 %).
  double block_share = 0.5;
  // From about so many bytes between its rows, or between its columns where it is transposed, a is
  // copied tile by tile where enough panels reuse it (84 GFLOP/s instead of 150 for a transposed a
  // of 1024 × 1024; at 512 × 512 the copy itself costs 5 %).
  int64_t far_rows = 3072, far_columns = 3072, block_panels = 6;
  // Rows from which on a copy of b pays that only brings its rows together, and the distance of
  // rows at whose multiples they compete for the same places of the caches, which makes two tiles
  // enough: 2.0 → 1.2 ms for 17 × 2048 × 2048.
  int64_t packed_rows = 96, aliased_bytes = 2048;
  // Panels packed together, so that a visit to a row, a page, yields more than 200 bytes: 1.2 → 1.0
  // ms for 17 × 2048 × 2048.
  int64_t panel_group = 4;
  // Tiles below one another, columns of turned tiles or dot products, and elements of an outer
  // product between two calls of the epilogue. After each tile alone it would wait for what the
  // masked stores have just written: 33 of 90 µs for a layer 8-8 at batch 4096.
  int64_t epilogue_tiles = 8, epilogue_columns = 64, epilogue_elements = 2048;
  // Tiles of a turned product below one another: they and a panel, over one chain, fit the
  // first-level cache.
  int64_t turned_tiles = 4;
  // Terms of a tile of dot products: its rows of b are 20 KiB of float.
  int64_t dot_depth = 1024;
  // Fractions of the peak that turned tiles reach at most, dot products, and those of few rows.
  double turned_peak = 0.83, dot_peak = 0.68, few_dots_peak = 0.5;

  // A batch whose layers' parameters fill at most this part of the second-level cache goes through
  // the layers in 4 to 128 blocks of so many rows at least (blocks.h). With 96 rows forward of
  // 17-64-64-6 at batch 2048 on one thread took 250 µs instead of 233, as each block packs the
  // weights anew. (`python benchmarks/model.py --shapes narrow`.)
  double parameters_share = 0.125;
  int64_t block_rows = 192, least_blocks = 4, most_blocks = 128;

  // Products of so many multiplications and columns, of as many rows and terms as `library_least`,
  // are the BLAS library's (library.h).
  double library_multiplications = 0;
  int64_t library_columns = 0, library_least = 0;

  // Rows of b that are no neighbours are no pattern that the processor fetches ahead by itself: up
  // to 1.9 times as fast at 8 × 2048 × 2048 where the tile does it. Packed ones are, and lose by
  // it.
  int64_t rows_ahead = 16;
  // The same of rows that are packed.
  int64_t packs_ahead = 8;
};

}  // namespace fastmlp::cpu
