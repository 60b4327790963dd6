// What was tuned for this instruction set, beside what tuning.h says of all of them.
// 16 vector registers: 12 of them hold a tile of sums.
// Part of the namespace that it is included in, as vec_avx2.h is.

constexpr Tuning tuned() {
  Tuning t;
  t.many_rows = {6, 2};
  t.few_rows = {3, 4};
  t.odd_columns = {4, 3}, t.odd_vectors = 9;  // 24 columns 1.18 times as fast, 33 1.12, 65 1.06
  t.fetches_tile_at_once = true;              // 3 to 5 % of layers of 17 to 64 columns
  t.far_columns = 2048;                       // 72 → 79 GFLOP/s at 512 × 512, 78 → 74 at 256 × 256
  // Zen 3, rows of 3 to 8 KiB: 0.75 to 0.93 of eager with 6, 0.96 to 1.04 with 20 at 128 and 256
  // columns; alike from 320 on.
  t.block_panels = 20;
  t.epilogue_tiles = 16;  // a tile is a third of the size that it has with AVX-512
  // Zen 3: 0.85 to 0.99 of eager without it, 0.97 to 1.05 with it; with 300 columns 1.10 and 1.05.
  t.library_multiplications = 3.5e7, t.library_columns = 320, t.library_least = 96;
  t.dot_rows = 3, t.dot_columns = 3, t.row_columns = 8;
  return t;
}
constexpr Tuning kTuning = tuned();
