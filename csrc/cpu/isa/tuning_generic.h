// What was tuned for this instruction set, beside what tuning.h says of all of them.
// 16 registers of four lanes on x86-64 and more on Arm.
// Part of the namespace that it is included in, as vec_generic.h is.

constexpr Tuning tuned() {
  Tuning t;
  t.many_rows = {4, 2};
  t.few_rows = {2, 3};
  // The library knows the processor; these kernels reach a tenth of it on one with AVX2.
  t.library_multiplications = 1e5, t.library_columns = 4, t.library_least = 4;
  t.dot_rows = 3, t.dot_columns = 3, t.row_columns = 8;
  return t;
}
constexpr Tuning kTuning = tuned();
