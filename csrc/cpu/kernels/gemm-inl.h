// Tiles of a matrix product. Included inside a target region, after vec_<isa>.h.

// The lower half of a tile's rows of a has a pointer of its own: both halves share the multiples of
// the stride. Of all rows' there were more than registers, and read from the stack in each step
// they cost 15 % of a 6×2 tile.
constexpr int upper_rows(int rows) { return (rows + 1) / 2; }

template <int rows, typename T>
FASTMLP_INLINE const T* lower_half(const T* a, int64_t a_row_stride) {
  return rows > 1 ? a + upper_rows(rows) * a_row_stride : a;
}

// One step of k of a tile: a row of b by vectors, a column of a element by element. A masked load
// takes a step of the multiply-add units, so the last vector is masked only where it has to be: 5 %
// of an 8×3 tile.
template <typename T, int rows, int vectors, bool full>
FASTMLP_INLINE void add_product(typename Vec<T>::Reg (&sum)[rows][vectors], const T* a,
                                const T* lower, int64_t a_row_stride, const T* b,
                                typename Vec<T>::Mask tail) {
  using V = Vec<T>;
  constexpr int last = vectors - 1;
  typename V::Reg row[vectors];
  FASTMLP_UNROLL
  for (int j = 0; j < last; ++j) row[j] = V::load(b + j * V::width);
  row[last] = full ? V::load(b + last * V::width) : V::load(b + last * V::width, tail);
  FASTMLP_UNROLL
  for (int i = 0; i < rows; ++i) {
    constexpr int half = upper_rows(rows);
    const auto element = V::set1(i < half ? a[i * a_row_stride] : lower[(i - half) * a_row_stride]);
    FASTMLP_UNROLL
    for (int j = 0; j < vectors; ++j) sum[i][j] = V::fma(element, row[j], sum[i][j]);
  }
}

// The outer-product form: rows × vectors accumulators stay in registers. a needs no packing: its
// `rows` streams stay in the first-level cache while the caller walks the tiles of a panel of b
// (packed, 12×2 and 14×2 tiles measured no faster than 8×3 unpacked).
template <typename T, int rows, int vectors, bool full, bool far>
FASTMLP_INLINE void add_all(typename Vec<T>::Reg (&sum)[rows][vectors], int64_t k, const T* a,
                            int64_t a_row_stride, int64_t a_col_stride, const T* b,
                            int64_t b_stride, typename Vec<T>::Mask tail, T* c, int64_t c_stride) {
  using V = Vec<T>;
  const T* lower = lower_half<rows>(a, a_row_stride);
  constexpr int at_once = kTuning.fetches_tile_at_once ? vectors : 1;
  const int64_t run = at_once == vectors ? k : k / vectors + 1;
  for (int64_t begin = 0; begin < k; begin += run, c += V::width) {
    FASTMLP_UNROLL
    for (int i = 0; i < rows; ++i) {
      FASTMLP_UNROLL
      for (int j = 0; j < at_once; ++j) __builtin_prefetch(c + i * c_stride + j * V::width, 1);
    }
    for (int64_t steps = k - begin < run ? k - begin : run; steps > 0; --steps) {
      if constexpr (far) {
        FASTMLP_UNROLL
        for (int j = 0; j < vectors; ++j)
          __builtin_prefetch(b + kTuning.rows_ahead * b_stride + j * V::width);
      }
      add_product<T, rows, vectors, full>(sum, a, lower, a_row_stride, b, tail);
      a += a_col_stride;
      lower += a_col_stride;
      b += b_stride;
    }
  }
}

// The same over the steps of a list. Lists are short and of any length, and each end of a loop is
// one that the processor does not foresee: one loop, and the tile of c is fetched before it.
template <typename T, int rows, int vectors, bool full>
FASTMLP_INLINE void add_listed(typename Vec<T>::Reg (&sum)[rows][vectors], int64_t k,
                               const int32_t* list, const T* a, int64_t a_row_stride,
                               int64_t a_col_stride, const T* b, int64_t b_stride,
                               typename Vec<T>::Mask tail, T* c, int64_t c_stride) {
  FASTMLP_UNROLL
  for (int i = 0; i < rows; ++i) {
    FASTMLP_UNROLL
    for (int j = 0; j < vectors; ++j) __builtin_prefetch(c + i * c_stride + j * Vec<T>::width, 1);
  }
  const T* const lower = lower_half<rows>(a, a_row_stride);
  for (int64_t p = 0; p < k; ++p) {
    add_product<T, rows, vectors, full>(sum, a + list[p] * a_col_stride,
                                        lower + list[p] * a_col_stride, a_row_stride,
                                        b + list[p] * b_stride, tail);
  }
}

template <typename T, int rows, int vectors, bool full>
FASTMLP_INLINE void add_products(typename Vec<T>::Reg (&sum)[rows][vectors], int64_t k,
                                 const int32_t* list, const T* a, int64_t a_row_stride,
                                 int64_t a_col_stride, const T* b, int64_t b_stride,
                                 typename Vec<T>::Mask tail, T* c, int64_t c_stride) {
  if (list) {
    add_listed<T, rows, vectors, full>(sum, k, list, a, a_row_stride, a_col_stride, b, b_stride,
                                       tail, c, c_stride);
  } else if (b_stride > 2 * vectors * Vec<T>::width) {
    add_all<T, rows, vectors, full, true>(sum, k, a, a_row_stride, a_col_stride, b, b_stride, tail,
                                          c, c_stride);
  } else {
    add_all<T, rows, vectors, full, false>(sum, k, a, a_row_stride, a_col_stride, b, b_stride, tail,
                                           c, c_stride);
  }
}

template <typename T, int rows, int vectors>
FASTMLP_INLINE void gemm_tile(int64_t k, const int32_t* list, const T* a, int64_t a_row_stride,
                              int64_t a_col_stride, const T* b, int64_t b_stride, T* c,
                              int64_t c_stride, int64_t n, bool accumulate, T scale) {
  using V = Vec<T>;
  constexpr int last = vectors - 1;
  const auto tail = V::first(n - last * V::width);
  typename V::Reg sum[rows][vectors];
  FASTMLP_UNROLL
  for (int i = 0; i < rows; ++i) {
    FASTMLP_UNROLL
    for (int j = 0; j < vectors; ++j) sum[i][j] = V::zero();
  }
  if (n == vectors * V::width) {
    add_products<T, rows, vectors, true>(sum, k, list, a, a_row_stride, a_col_stride, b, b_stride,
                                         tail, c, c_stride);
  } else {
    add_products<T, rows, vectors, false>(sum, k, list, a, a_row_stride, a_col_stride, b, b_stride,
                                          tail, c, c_stride);
  }
  const auto scales = V::set1(scale);
  FASTMLP_UNROLL
  for (int i = 0; i < rows; ++i) {
    T* out = c + i * c_stride;
    FASTMLP_UNROLL
    for (int j = 0; j < last; ++j) {
      if (accumulate) sum[i][j] = V::fma(sum[i][j], scales, V::load(out + j * V::width));
      V::store(out + j * V::width, sum[i][j]);
    }
    if (accumulate)
      sum[i][last] = V::fma(sum[i][last], scales, V::load(out + last * V::width, tail));
    V::store(out + last * V::width, sum[i][last], tail);
  }
}

// Tiles below one another in one call: a tile of 6 × 16 and depth 33 takes 220 cycles, and called
// for each by itself, with what the caller works out for it, 70 more (AMD, Zen 3).
template <typename T, int rows, int vectors>
void gemm_tiles(int64_t tiles, int64_t a_tile_stride, int64_t k, const int32_t* list, const T* a,
                int64_t a_row_stride, int64_t a_col_stride, const T* b, int64_t b_stride, T* c,
                int64_t c_stride, int64_t n, bool accumulate, T scale) {
  for (int64_t tile = 0; tile < tiles; ++tile) {
    gemm_tile<T, rows, vectors>(k, list, a + tile * a_tile_stride, a_row_stride, a_col_stride, b,
                                b_stride, c + tile * rows * c_stride, c_stride, n, accumulate,
                                scale);
  }
}

// A product of depth one: a column times a row. A tile would take longer to begin and end than to
// compute: 1.4 of 3.4 µs of a training step of 64-64-64-4 at batch 1. The row of b stays in
// registers, some vectors at a time.
template <typename T>
void outer_product(int64_t rows, int64_t n, const T* a, int64_t a_stride, const T* b, T* c,
                   int64_t c_stride, bool accumulate, T scale) {
  using V = Vec<T>;
  constexpr int kVectors = 4;
  const auto scales = V::set1(scale);
  for (int64_t j = 0; j < n; j += kVectors * V::width) {
    typename V::Mask mask[kVectors];
    typename V::Reg row[kVectors];
    FASTMLP_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const int64_t left = n - j - v * V::width;
      mask[v] = V::first(left < 0 ? 0 : left < V::width ? left : V::width);
      row[v] = V::load(b + j + v * V::width, mask[v]);
    }
    const bool full = n - j >= kVectors * V::width;
    for (int64_t i = 0; i < rows; ++i) {
      const auto element = V::set1(a[i * a_stride]);
      T* const out = c + i * c_stride + j;
      FASTMLP_UNROLL
      for (int v = 0; v < kVectors; ++v) {
        T* const to = out + v * V::width;
        auto sum = V::mul(element, row[v]);
        if (full) {
          if (accumulate) sum = V::fma(sum, scales, V::load(to));
          V::store(to, sum);
        } else {
          if (accumulate) sum = V::fma(sum, scales, V::load(to, mask[v]));
          V::store(to, sum, mask[v]);
        }
      }
    }
  }
}

// The dot-product form, for products of which both operands are contiguous along k (x · weightᵀ):
// accumulate vectors along k, sum their lanes at the end. Needs no packing; pays for the final
// sums, so it serves few rows or a deep k.
template <typename T, int rows, int columns>
struct DotSums {
  using V = Vec<T>;
  static constexpr int groups = (rows * columns + V::width - 1) / V::width;
  typename V::Reg sum[groups * V::width];

  template <bool masked>
  FASTMLP_INLINE void step(const T* a, int64_t a_stride, const T* b, int64_t b_stride,
                           typename V::Mask mask) {
    typename V::Reg left[rows];
    FASTMLP_UNROLL
    for (int i = 0; i < rows; ++i)
      left[i] = masked ? V::load(a + i * a_stride, mask) : V::load(a + i * a_stride);
    FASTMLP_UNROLL
    for (int j = 0; j < columns; ++j) {
      const auto right = masked ? V::load(b + j * b_stride, mask) : V::load(b + j * b_stride);
      FASTMLP_UNROLL
      for (int i = 0; i < rows; ++i)
        sum[i * columns + j] = V::fma(left[i], right, sum[i * columns + j]);
    }
  }
};

template <typename T, int rows, int columns>
void dot_tile(int64_t k, const T* a, int64_t a_stride, const T* b, int64_t b_stride, T* c,
              int64_t c_stride, bool accumulate) {
  using V = Vec<T>;
  using Sums = DotSums<T, rows, columns>;
  const auto tail = V::first(k % V::width);
  Sums s;
  FASTMLP_UNROLL
  for (int i = 0; i < Sums::groups * V::width; ++i) s.sum[i] = V::zero();
  int64_t p = 0;
  for (; p + V::width <= k; p += V::width)
    s.template step<false>(a + p, a_stride, b + p, b_stride, tail);
  if (p < k) s.template step<true>(a + p, a_stride, b + p, b_stride, tail);

  T total[Sums::groups * V::width];
  FASTMLP_UNROLL
  for (int g = 0; g < Sums::groups; ++g) {
    typename V::Reg group[V::width];
    FASTMLP_UNROLL
    for (int i = 0; i < V::width; ++i) group[i] = s.sum[g * V::width + i];
    V::store(total + g * V::width, V::sum_rows(group));
  }
  for (int i = 0; i < rows; ++i) {
    for (int j = 0; j < columns; ++j) {
      T& out = c[i * c_stride + j];
      out = accumulate ? out + total[i * columns + j] : total[i * columns + j];
    }
  }
}

template <typename T>
T multiply_add(int64_t steps) {
  using V = Vec<T>;
  typename V::Reg sum[kPeakChains];
  FASTMLP_UNROLL
  for (int i = 0; i < kPeakChains; ++i) sum[i] = V::set1(T(i));
  const auto factor = V::set1(T(0.5)), term = V::set1(T(1));
  for (int64_t s = 0; s < steps; ++s) {
    FASTMLP_UNROLL
    for (int i = 0; i < kPeakChains; ++i) sum[i] = V::fma(sum[i], factor, term);
  }
  T total = 0, lanes[V::width];
  FASTMLP_UNROLL
  for (int i = 0; i < kPeakChains; ++i) {
    V::store(lanes, sum[i]);
    total += lanes[0];
  }
  return total;
}
