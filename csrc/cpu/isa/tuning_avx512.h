// What was tuned for this instruction set, beside what tuning.h says of all of them.
// 32 vector registers: 24 of them hold a tile of sums.
// Part of the namespace that it is included in, as vec_avx512.h is.

constexpr Tuning tuned() {
  Tuning t;
  t.many_rows = {8, 3};
  t.few_rows = {4, 6};
  t.dot_rows = 5, t.dot_columns = 5, t.row_columns = 16;
  return t;
}
constexpr Tuning kTuning = tuned();
