// What was tuned for this instruction set, beside what tuning.h says of all of them.
// 32 vector registers: 24 of them hold a tile of sums.
// Part of the namespace that it is included in, as vec_avx512.h is.

constexpr Tuning tuned() {
  Tuning t;
  t.many_rows = {8, 3};
  t.few_rows = {4, 6};
  // Sapphire Rapids, without it: 0.87 to 0.96 of eager from here on, 0.99 at half of it.
  t.library_multiplications = 1e9, t.library_columns = 512, t.library_least = 256;
  t.turned_tiles = 2;
  t.dot_rows = 5, t.dot_columns = 5, t.row_columns = 16;
  return t;
}
constexpr Tuning kTuning = tuned();
