// Fills a Kernels table from the templates of the other *-inl.h. Included inside a
// target region, last.

template <typename T, int rows, int max_vectors>
void fill_gemm(Kernels<T>& table) {
  if constexpr (max_vectors > 0) {
    table.gemm[rows][max_vectors] = gemm_tiles<T, rows, max_vectors>;
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

template <typename T, typename... Each>
void fill_activations(Kernels<T>& table, List<Each...>) {
  static_assert(sizeof...(Each) <= kMostActivations);
  int number = 0;
  ((table.activate[number] = activate<T, Each>,
    table.activate_backward[number++] = activate_backward<T, Each>),
   ...);
}

template <typename T, typename... Each>
void fill_losses(Kernels<T>& table, List<Each...>) {
  static_assert(sizeof...(Each) <= kMostLosses);
  int number = 0;
  ((table.loss[number++] = loss_rows<T, Each>), ...);
}

template <typename T, typename... Each>
void fill_optimizers(Kernels<T>& table, List<Each...>) {
  static_assert(sizeof...(Each) <= kMostOptimizers);
  int number = 0;
  ((table.update[number++] = update<T, Each>), ...);
}

template <typename T>
Kernels<T> make_kernels(const char* isa) {
  constexpr TileShape many = kTuning.many_rows, few = kTuning.few_rows, odd = kTuning.odd_columns;
  constexpr int dot_columns = kTuning.dot_columns, row_columns = kTuning.row_columns;
  static_assert(many.rows <= kMaxTileRows && few.rows <= many.rows);
  static_assert(few.vectors <= kMaxTileVectors && many.vectors <= few.vectors);
  static_assert(odd.rows <= kMaxTileRows && odd.vectors <= kMaxTileVectors);
  static_assert(kTuning.odd_vectors == 0 || (odd.rows > 0 && odd.vectors > many.vectors));
  static_assert(kTuning.dot_rows <= kMaxDotTile && dot_columns <= row_columns &&
                row_columns <= kMaxRowTile);
  static_assert(kTuning.block_depth <= kMaxBlockDepth);
  Kernels<T> table{};
  table.isa = isa;
  table.width = Vec<T>::width;
  table.tuning = kTuning;
  fill_gemm_rows<T, many.rows, many.vectors>(table);
  fill_gemm_rows<T, few.rows, few.vectors>(table);
  fill_gemm_rows<T, odd.rows, odd.vectors>(table);
  fill_dot<T, kTuning.dot_rows, dot_columns, dot_columns>(table);
  fill_dot<T, 1, row_columns, row_columns>(table);
  fill_activations(table, Activations());
  table.norm[static_cast<int>(Norm::layer)] = norm<T, true>;
  table.norm[static_cast<int>(Norm::rms)] = norm<T, false>;
  table.norm[static_cast<int>(Norm::softmax)] = softmax_rows<T, false>;
  table.norm[static_cast<int>(Norm::log_softmax)] = softmax_rows<T, true>;
  table.norm_backward[static_cast<int>(Norm::layer)] = norm_backward<T, true>;
  table.norm_backward[static_cast<int>(Norm::rms)] = norm_backward<T, false>;
  table.norm_backward[static_cast<int>(Norm::softmax)] = softmax_backward<T, false>;
  table.norm_backward[static_cast<int>(Norm::log_softmax)] = softmax_backward<T, true>;
  table.column_statistics = column_statistics<T>;
  table.column_factors = column_factors<T>;
  table.center = center<T>;
  table.column_products = column_products<T>;
  table.center_backward = center_backward<T>;
  table.prelu = prelu<T>;
  table.prelu_sums = prelu_sums<T>;
  table.prelu_backward = prelu_backward<T>;
  fill_losses(table, Losses());
  fill_optimizers(table, Optimizers());
  table.outer_product = outer_product<T>;
  table.combine = combine<T>;
  table.column_sums = column_sums<T>;
  table.pack_transposed = pack_transposed<T>;
  table.pack_rows = pack_rows<T>;
  table.separate = separate<T>;
  table.convert = convert<T>;
  table.bernoulli = bernoulli<T>;
  table.noise = noise;
  table.pack_neighbours = pack_neighbours;
  table.resample = resample;
  table.multiply_add = multiply_add<T>;
  return table;
}
