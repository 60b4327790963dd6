// What was tuned for this instruction set. 32 vector registers: 24 of them hold a tile of sums.
// After a change, `python benchmarks/compare.py HEAD --shapes 'named,grid'` measures every row
// against the build of the last commit. Part of the namespace that it is included in, as
// vec_avx512.h is.

struct Tuning {
  // Rows and vectors of the gemm tile: of products with many rows, and with few.
  static constexpr int many_rows = 8, many_vectors = 3;
  static constexpr int few_rows = 4, few_vectors = 6;
  // Rows and columns of a tile of dot products, and columns of one of a single row.
  static constexpr int dot_rows = 5, dot_columns = 5, row_columns = 16;
};
