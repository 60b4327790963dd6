// Norms over rows, forward and backward. Included inside a target region.

// Sums over a row of what `terms` gives for each vector of it, `count` sums at once; two vectors in
// turns, so that their additions do not wait for one another. Of a row of n, in this order whoever
// asks: bits do not hang on who computes it.
template <typename T, int count, typename Terms>
FASTMLP_INLINE void row_sums(int64_t n, const Terms& terms, T (&sums)[count]) {
  using V = Vec<T>;
  typename V::Reg even[count], odd[count];
  for (int c = 0; c < count; ++c) even[c] = odd[c] = V::zero();
  const auto add = [&](typename V::Reg(&to)[count], int64_t j, auto... mask) FASTMLP_INLINED {
    typename V::Reg found[count];
    terms(j, found, mask...);
    FASTMLP_UNROLL
    for (int c = 0; c < count; ++c) to[c] = V::add(to[c], found[c]);
  };
  int64_t j = 0;
  for (; j + 2 * V::width <= n; j += 2 * V::width) {
    add(even, j);
    add(odd, j + V::width);
  }
  for (; j + V::width <= n; j += V::width) add(even, j);
  if (j < n) add(odd, j, V::first(n - j));
  for (int c = 0; c < count; ++c) {
    T lanes[V::width];
    V::store(lanes, V::add(even[c], odd[c]));
    // Pairwise.
    for (int half = V::width / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    sums[c] = lanes[0];
  }
}

// What a row is brought to zero mean (Norm::layer alone) and unit size by: (x - mean) · scale.
template <typename T>
struct RowScale {
  T mean, scale;
};

// A vector whose lanes beyond the row are zero.
template <typename T>
FASTMLP_INLINE Reg<T> inside(Reg<T> x) {
  return x;
}
template <typename T>
FASTMLP_INLINE Reg<T> inside(Reg<T> x, typename Vec<T>::Mask mask) {
  T lanes[Vec<T>::width] = {};
  Vec<T>::store(lanes, x, mask);
  return Vec<T>::load(lanes);
}

template <typename T, bool centers>
FASTMLP_INLINE RowScale<T> row_scale(int64_t n, const T* x, double eps) {
  using V = Vec<T>;
  const T count = static_cast<T>(n);
  T mean = 0, sum[1];
  if (centers) {
    row_sums<T, 1>(
        n,
        [&](int64_t j, auto& found, auto... mask)
            FASTMLP_INLINED { found[0] = V::load(x + j, mask...); },
        sum);
    mean = sum[0] / count;
  }
  const auto means = V::set1(mean);
  row_sums<T, 1>(
      n,
      [&](int64_t j, auto& found, auto... mask) FASTMLP_INLINED {
        const auto a = V::load(x + j, mask...);
        const auto d = centers ? inside<T>(V::sub(a, means), mask...) : a;
        found[0] = V::mul(d, d);
      },
      sum);
  return {mean, T(1) / std::sqrt(sum[0] / count + static_cast<T>(eps))};
}

// z[rows, n] = (x - mean) · scale · weight
template <typename T, bool centers>
void norm(int64_t rows, int64_t n, const T* x, int64_t x_stride, const T* weight, double eps,
          T* z) {
  using V = Vec<T>;
  for (int64_t i = 0; i < rows; ++i, x += x_stride, z += n) {
    const auto [mean, scale] = row_scale<T, centers>(n, x, eps);
    const auto means = V::set1(mean), scales = V::set1(scale);
    const auto one = [&](int64_t j, auto... mask) FASTMLP_INLINED {
      const auto a = V::load(x + j, mask...);
      const auto d = V::mul(centers ? V::sub(a, means) : a, scales);
      V::store(z + j, V::mul(d, V::load(weight + j, mask...)), mask...);
    };
    int64_t j = 0;
    for (; j + V::width <= n; j += V::width) one(j);
    if (j < n) one(j, V::first(n - j));
  }
}

// With h = (x - mean) · scale and g = dz · weight: dx = scale · (g - mean of g - h · mean of g·h),
// without the mean of g where the norm does not center (null: not wanted), and what the weight's
// gradient is the sum over the rows of: terms = dz · h.
template <typename T, bool centers>
void norm_backward(int64_t rows, int64_t n, const T* x, int64_t x_stride, const T* weight,
                   double eps, const T* dz, int64_t dz_stride, T* dx, T* terms) {
  using V = Vec<T>;
  const T count = static_cast<T>(n);
  for (int64_t i = 0; i < rows; ++i, x += x_stride, dz += dz_stride, terms += n) {
    const auto [mean, scale] = row_scale<T, centers>(n, x, eps);
    const auto means = V::set1(mean), scales = V::set1(scale);
    T sums[2];
    row_sums<T, 2>(
        n,
        [&](int64_t j, auto& found, auto... mask) FASTMLP_INLINED {
          const auto a = V::load(x + j, mask...);
          const auto h = V::mul(centers ? V::sub(a, means) : a, scales);
          const auto incoming = V::load(dz + j, mask...);  // zero beyond the row
          const auto term = V::mul(incoming, h);
          V::store(terms + j, term, mask...);
          const auto weights = V::load(weight + j, mask...);
          found[0] = V::mul(incoming, weights);
          found[1] = V::mul(term, weights);
        },
        sums);
    if (!dx) continue;
    const auto of_g = V::set1(centers ? sums[0] / count : T(0)), of_gh = V::set1(sums[1] / count);
    const auto one = [&](int64_t j, auto... mask) FASTMLP_INLINED {
      const auto a = V::load(x + j, mask...);
      const auto h = V::mul(centers ? V::sub(a, means) : a, scales);
      const auto g = V::mul(V::load(dz + j, mask...), V::load(weight + j, mask...));
      const auto rest = V::sub(V::sub(g, of_g), V::mul(h, of_gh));
      V::store(dx + j, V::mul(rest, scales), mask...);
    };
    int64_t j = 0;
    for (; j + V::width <= n; j += V::width) one(j);
    if (j < n) one(j, V::first(n - j));
    dx += n;
  }
}

// z = softmax(x), or its logarithm.
template <typename T, bool is_log>
void softmax_rows(int64_t rows, int64_t n, const T* x, int64_t x_stride, const T*, double, T* z) {
  using V = Vec<T>;
  constexpr int64_t kRows = 64;
  T maximum[kRows], sum[kRows];
  if (n == 0) return;
  const int64_t together = x_stride == n ? kRows : 1;
  for (int64_t i = 0; i < rows; i += together) {
    const int64_t some = rows - i < together ? rows - i : together;
    softmax<T>(some, n, x + i * x_stride, z + i * n, maximum, sum);
    if (!is_log) continue;
    for (int64_t r = 0; r < some; ++r) {
      const T* const from = x + (i + r) * x_stride;
      T* const to = z + (i + r) * n;
      const auto most = V::set1(maximum[r]), logarithm = V::set1(std::log(sum[r]));
      for (int64_t j = 0; j < n; j += V::width) {
        const auto mask = V::first(n - j < V::width ? n - j : V::width);
        V::store(to + j, V::sub(V::sub(V::load(from + j, mask), most), logarithm), mask);
      }
    }
  }
}

// With p = softmax(x): dx = p · (dz - sum of dz · p), of the logarithm dz - p · sum of dz.
template <typename T, bool is_log>
void softmax_backward(int64_t rows, int64_t n, const T* x, int64_t x_stride, const T*, double,
                      const T* dz, int64_t dz_stride, T* dx, T*) {
  using V = Vec<T>;
  if (!dx || n == 0) return;
  for (int64_t i = 0; i < rows; ++i, x += x_stride, dz += dz_stride, dx += n) {
    T maximum, total, sums[1];
    softmax<T>(1, n, x, dx, &maximum, &total);
    row_sums<T, 1>(
        n,
        [&](int64_t j, auto& found, auto... mask) FASTMLP_INLINED {
          const auto g = V::load(dz + j, mask...);  // zero beyond the row
          found[0] = is_log ? g : inside<T>(V::mul(g, V::load(dx + j, mask...)), mask...);
        },
        sums);
    const auto sum = V::set1(sums[0]);
    for (int64_t j = 0; j < n; j += V::width) {
      const auto mask = V::first(n - j < V::width ? n - j : V::width);
      const auto g = V::load(dz + j, mask), p = V::load(dx + j, mask);
      V::store(dx + j, is_log ? V::sub(g, V::mul(p, sum)) : V::mul(p, V::sub(g, sum)), mask);
    }
  }
}
