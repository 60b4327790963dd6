// Fills a Kernels table from the templates of the other *-inl.h. Included inside a
// target region, last.

template <typename T, int rows, int max_vectors>
void fill_gemm(Kernels<T>& table) {
  if constexpr (max_vectors > 0) {
    table.gemm[rows][max_vectors] = gemm_tile<T, rows, max_vectors>;
    fill_gemm<T, rows, max_vectors - 1>(table);
  }
}

template <typename T, int rows, int max_vectors>
void fill_gemm_rows(Kernels<T>& table) {
  if constexpr (rows > 0) {
    fill_gemm<T, rows, max_vectors>(table);
    fill_gemm_rows<T, rows - 1, max_vectors>(table);
  }
}

template <typename T, int rows, int columns, int max_columns>
void fill_dot(Kernels<T>& table) {
  if constexpr (rows > 0) {
    table.dot[rows][columns] = dot_tile<T, rows, columns>;
    if constexpr (columns > 1) {
      fill_dot<T, rows, columns - 1, max_columns>(table);
    } else {
      fill_dot<T, rows - 1, max_columns, max_columns>(table);
    }
  }
}

template <typename T, int activation>
void fill_activations(Kernels<T>& table) {
  if constexpr (activation < kActivations) {
    table.activate[activation] = activate<T, activation>;
    table.derive[activation] = derive<T, activation>;
    fill_activations<T, activation + 1>(table);
  }
}

template <typename T, int tall_rows, int tall_vectors, int wide_rows, int wide_vectors,
          int dot_rows, int dot_columns, int row_columns>
Kernels<T> make_kernels(const char* isa) {
  static_assert(tall_rows <= kMaxTileRows && wide_rows <= tall_rows);
  static_assert(wide_vectors <= kMaxTileVectors && tall_vectors <= wide_vectors);
  static_assert(dot_rows <= kMaxDotTile && dot_columns <= row_columns &&
                row_columns <= kMaxRowTile);
  Kernels<T> table{};
  table.isa = isa;
  table.width = Vec<T>::width;
  table.tall = {tall_rows, tall_vectors};
  table.wide = {wide_rows, wide_vectors};
  table.dot_rows = dot_rows;
  table.dot_columns = dot_columns;
  table.row_columns = row_columns;
  fill_gemm_rows<T, tall_rows, tall_vectors>(table);
  fill_gemm_rows<T, wide_rows, wide_vectors>(table);
  fill_dot<T, dot_rows, dot_columns, dot_columns>(table);
  fill_dot<T, 1, row_columns, row_columns>(table);
  fill_activations<T, 0>(table);
  table.combine = combine<T>;
  table.column_sums = column_sums<T>;
  table.pack_transposed = pack_transposed<T>;
  table.pack_rows = pack_rows<T>;
  table.separate = separate<T>;
  table.convert = convert<T>;
  table.softmax = softmax<T>;
  table.squared_error = squared_error<T>;
  table.bce_with_logits = bce_with_logits<T>;
  table.sgd = sgd<T>;
  table.adam = adam<T>;
  table.bernoulli = bernoulli<T>;
  table.noise = noise;
  table.pack_neighbours = pack_neighbours;
  table.resample = resample;
  table.multiply_add = multiply_add<T>;
  return table;
}
