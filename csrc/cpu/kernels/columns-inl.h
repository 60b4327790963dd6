// Sums over the rows of each column, and what is made of columns by them. Included inside a target
// region.

// Pairwise summation (Higham 1993): the error grows with log(rows) instead of rows. Halving at
// multiples of 32 rows keeps the order of the sums a function of the number of rows alone.
//
// `count` sums at once of what terms(row, column, found, mask...) finds.
template <typename T, int count, typename Terms, typename... Mask>
FASTMLP_INLINE void short_column_sums(int64_t begin, int64_t end, int64_t j, const Terms& terms,
                                      Reg<T> (&sums)[count], Mask... mask) {
  using V = Vec<T>;
  // Four sums of their own, so that the processor adds them side by side.
  Reg<T> sum[4][count], found[count];
  FASTMLP_UNROLL
  for (int s = 0; s < 4; ++s) {
    FASTMLP_UNROLL
    for (int c = 0; c < count; ++c) sum[s][c] = V::zero();
  }
  const auto add = [&](int s, int64_t i) FASTMLP_INLINED {
    terms(i, j, found, mask...);
    FASTMLP_UNROLL
    for (int c = 0; c < count; ++c) sum[s][c] = V::add(sum[s][c], found[c]);
  };
  int64_t i = begin;
  for (; i + 4 <= end; i += 4) {
    FASTMLP_UNROLL
    for (int s = 0; s < 4; ++s) add(s, i + s);
  }
  for (; i < end; ++i) add(0, i);
  FASTMLP_UNROLL
  for (int c = 0; c < count; ++c)
    sums[c] = V::add(V::add(sum[0][c], sum[1][c]), V::add(sum[2][c], sum[3][c]));
}

// Of some columns at a time, so that the lines of a matrix are read in runs: each vector of columns
// for itself through all rows took 5 % of forward+backward of 128-128 at batch 4096.
constexpr int kColumnVectors = 16;

// Of columns j … j + n - 1, to out + j.
template <typename T, int count, typename Terms>
void sums_of_few_columns(int64_t begin, int64_t end, int64_t first, int64_t n, const Terms& terms,
                         T* const (&out)[count]) {
  using V = Vec<T>;
  constexpr int64_t run = 32;
  const auto each = [n](const auto& sum) FASTMLP_INLINED {
    int64_t j = 0;
    for (; j + V::width <= n; j += V::width) sum(j);
    if (j < n) sum(j, V::first(n - j));
  };
  const int64_t rows = end - begin;
  if (rows <= run) {
    return each([&](int64_t j, auto... mask) FASTMLP_INLINED {
      Reg<T> sums[count];
      short_column_sums<T, count>(begin, end, first + j, terms, sums, mask...);
      FASTMLP_UNROLL
      for (int c = 0; c < count; ++c) V::store(out[c] + j, sums[c], mask...);
    });
  }
  const int64_t half = begin + (rows / 2 + run - 1) / run * run;
  T rest[count][kColumnVectors * V::width];
  T* rests[count];
  for (int c = 0; c < count; ++c) rests[c] = rest[c];
  sums_of_few_columns<T, count>(begin, half, first, n, terms, out);
  sums_of_few_columns<T, count>(half, end, first, n, terms, rests);
  each([&](int64_t j, auto... mask) FASTMLP_INLINED {
    FASTMLP_UNROLL
    for (int c = 0; c < count; ++c) {
      const auto sum = V::add(V::load(out[c] + j, mask...), V::load(rest[c] + j, mask...));
      V::store(out[c] + j, sum, mask...);
    }
  });
}

template <typename T, int count, typename Terms>
FASTMLP_INLINE void sums_of_columns(int64_t rows, int64_t n, const Terms& terms,
                                    T* const (&out)[count]) {
  constexpr int64_t few = kColumnVectors * Vec<T>::width;
  for (int64_t j = 0; j < n; j += few) {
    T* places[count];
    for (int c = 0; c < count; ++c) places[c] = out[c] + j;
    sums_of_few_columns<T, count>(0, rows, j, n - j < few ? n - j : few, terms, places);
  }
}

template <typename T>
void column_sums(int64_t rows, int64_t n, const T* a, int64_t stride, T* out) {
  sums_of_columns<T, 1>(rows, n,
                        [&](int64_t i, int64_t j, auto& found, auto... mask) FASTMLP_INLINED {
                          found[0] = Vec<T>::load(a + i * stride + j, mask...);
                        },
                        {out});
}

// --- Norm::batch and Norm::fixed

// The differences are from the mean that has been found, so that nothing cancels.
template <typename T>
void column_statistics(int64_t rows, int64_t n, const T* x, int64_t stride, T* mean, T* variance) {
  using V = Vec<T>;
  const auto divide = [&](T* sums) FASTMLP_INLINED {
    for (int64_t j = 0; j < n; ++j) sums[j] /= static_cast<T>(rows);
  };
  column_sums<T>(rows, n, x, stride, mean);
  divide(mean);
  sums_of_columns<T, 1>(rows, n,
                        [&](int64_t i, int64_t j, auto& found, auto... mask) FASTMLP_INLINED {
                          const auto d = V::sub(V::load(x + i * stride + j, mask...),
                                                V::load(mean + j, mask...));
                          found[0] = V::mul(d, d);
                        },
                        {variance});
  divide(variance);
}

template <typename T>
void column_factors(int64_t n, const T* weight, const T* variance, double eps, T* factor,
                    T* inverse) {
  using V = Vec<T>;
  const auto one = V::set1(T(1)), least = V::set1(static_cast<T>(eps));
  for (int64_t j = 0; j < n; j += V::width) {
    const auto mask = V::first(n - j < V::width ? n - j : V::width);
    const auto size = V::sqrt(V::add(V::load(variance + j, mask), least));
    const auto scale = V::div(one, size);
    V::store(inverse + j, scale, mask);
    V::store(factor + j, V::mul(V::load(weight + j, mask), scale), mask);
  }
}

template <typename T>
void center(int64_t rows, int64_t n, const T* x, int64_t x_stride, const T* mean, const T* factor,
            T* z, int64_t z_stride) {
  using V = Vec<T>;
  by_vectors<T>(
      rows, n,
      [&](int64_t i, int64_t j, auto... mask) FASTMLP_INLINED {
        const auto a = V::load(x + i * x_stride + j, mask...);
        return mean ? V::mul(V::sub(a, V::load(mean + j, mask...)), V::load(factor + j, mask...))
                    : a;
      },
      [&](int64_t i, int64_t j, auto value, auto... mask)
          FASTMLP_INLINED { V::store(z + i * z_stride + j, value, mask...); });
}

template <typename T>
void column_products(int64_t rows, int64_t n, const T* dz, int64_t dz_stride, const T* x,
                     int64_t x_stride, const T* mean, T* sums, T* products) {
  using V = Vec<T>;
  sums_of_columns<T, 2>(rows, n,
                        [&](int64_t i, int64_t j, auto& found, auto... mask) FASTMLP_INLINED {
                          const auto d = V::sub(V::load(x + i * x_stride + j, mask...),
                                                V::load(mean + j, mask...));
                          found[0] = V::load(dz + i * dz_stride + j, mask...);
                          found[1] = V::mul(found[0], d);
                        },
                        {sums, products});
}

template <typename T>
void center_backward(int64_t rows, int64_t n, const T* dz, int64_t dz_stride, const T* x,
                     int64_t x_stride, const T* mean, const T* offset, const T* slope,
                     const T* factor, T* dx, int64_t dx_stride) {
  using V = Vec<T>;
  by_vectors<T>(
      rows, n,
      [&](int64_t i, int64_t j, auto... mask) FASTMLP_INLINED {
        auto g = V::load(dz + i * dz_stride + j, mask...);
        if (slope) {
          const auto d = V::sub(V::load(x + i * x_stride + j, mask...), V::load(mean + j, mask...));
          // In one instruction, said so: bits must not hang on how much of a vector is there.
          g = V::fma(d, V::load(slope + j, mask...), V::sub(g, V::load(offset + j, mask...)));
        }
        return factor ? V::mul(g, V::load(factor + j, mask...)) : g;
      },
      [&](int64_t i, int64_t j, auto value, auto... mask)
          FASTMLP_INLINED { V::store(dx + i * dx_stride + j, value, mask...); });
}
