// What was tuned for this instruction set. 16 vector registers: 12 of them hold a tile of sums.
// After a change, `python benchmarks/compare.py HEAD --shapes 'named,grid'` measures every row
// against the build of the last commit. Part of the namespace that it is included in, as vec_avx2.h
// is.

struct Tuning {
  // Rows and vectors of the gemm tile: of products with many rows, and with few.
  static constexpr int many_rows = 6, many_vectors = 2;
  static constexpr int few_rows = 3, few_vectors = 4;
  // Rows and columns of a tile of dot products, and columns of one of a single row.
  static constexpr int dot_rows = 3, dot_columns = 3, row_columns = 8;
};
