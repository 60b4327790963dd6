// Loss and optimizer kernels. Included inside a target region, after activation-inl.h.

// Plain C++, which the compiler turns into the vectors of the target.
template <typename T>
void convert(int64_t n, const uint8_t* from, T scale, T shift, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i]) * scale + shift;
}

// p = softmax(z) for each row: exp(z - maximum) / sum, with both factors kept for the logarithm.
// NaN and infinity give NaN, as in torch.
template <typename T>
void softmax(int64_t rows, int64_t n, const T* z, T* p, T* maximum, T* sum) {
  using V = Vec<T>;
  for (int64_t i = 0; i < rows; ++i, z += n, p += n) {
    T greatest = z[0];
    for (int64_t j = 1; j < n; ++j) greatest = z[j] > greatest ? z[j] : greatest;
    const auto shift = V::set1(greatest);
    for (int64_t j = 0; j < n; j += V::width) {
      const auto mask = V::first(n - j < V::width ? n - j : V::width);
      V::store(p + j, exp<T>(V::sub(V::load(z + j, mask), shift)), mask);
    }
    T total = 0;
    for (int64_t j = 0; j < n; ++j) total += p[j];
    const T scale = T(1) / total;
    for (int64_t j = 0; j < n; ++j) p[j] *= scale;
    maximum[i] = greatest;
    sum[i] = total;
  }
}

// Zero in place of subnormal numbers. What decays without end, as the moments of a gradient that
// stays zero, ends at them, and each operation on one takes as long as a hundred others.
template <typename T>
FASTMLP_INLINE typename Vec<T>::Reg without_subnormals(typename Vec<T>::Reg a) {
  using V = Vec<T>;
  const auto excess = V::sub(V::abs(a), V::set1(std::numeric_limits<T>::min()));
  return V::select(V::is_not_positive(excess), V::zero(), a);  // NaN stays
}

// The order of operations is that of torch.optim's single-tensor functions, unless said. `scale`
// multiplies the gradient first (its clipping, and its sign where the loss is maximised).
template <typename T>
void sgd(int64_t rows, int64_t n, int64_t stride, T* parameter, const T* gradient, T* momentum,
         const Update<T>& u, T scale) {
  using V = Vec<T>;
  const auto scales = V::set1(scale), decay = V::set1(T(u.weight_decay)), rate = V::set1(T(-u.lr));
  const auto factor = V::set1(T(u.momentum_factor)), rest = V::set1(T(1 - u.dampening));
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t j = 0; j < n; j += V::width) {
      const auto mask = V::first(n - j < V::width ? n - j : V::width);
      const int64_t i = row * stride + j;
      const auto p = V::load(parameter + i, mask);
      auto g = V::mul(V::load(gradient + i, mask), scales);
      if (u.weight_decay != 0) g = V::fma(p, decay, g);
      if (momentum) {
        auto b = g;
        if (!u.first) b = V::fma(V::load(momentum + i, mask), factor, V::mul(g, rest));
        b = without_subnormals<T>(b);
        V::store(momentum + i, b, mask);
        g = u.nesterov ? V::fma(b, factor, g) : b;
      }
      V::store(parameter + i, V::fma(g, rate, p), mask);
    }
  }
}

// Kingma and Ba 2015; AMSGrad: Reddi et al. 2018; decoupled: Loshchilov and Hutter 2019.
template <typename T>
void adam(int64_t rows, int64_t n, int64_t stride, T* parameter, const T* gradient, T* mean,
          T* square, T* square_max, const Update<T>& u, T scale) {
  using V = Vec<T>;
  const auto scales = V::set1(scale), decay = V::set1(T(u.weight_decay));
  const auto keep = V::set1(T(1 - u.lr * u.weight_decay));
  const auto rest1 = V::set1(T(1 - u.beta1)), beta2 = V::set1(T(u.beta2)),
             rest2 = V::set1(T(1 - u.beta2));
  // rate · m / (√s / root + eps), with both sides of the fraction multiplied by root: a division
  // takes as long as ten other operations.
  const auto eps = V::set1(T(u.eps * u.correction2)),
             rate = V::set1(T(-u.lr / u.correction1 * u.correction2));
  // Beside a larger eps the root of a subnormal square is less than half a unit in the last place,
  // even in the first steps, when it counts thirty times.
  const bool flush = u.eps > 0x1p-35;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t j = 0; j < n; j += V::width) {
      const auto mask = V::first(n - j < V::width ? n - j : V::width);
      const int64_t i = row * stride + j;
      auto p = V::load(parameter + i, mask);
      auto g = V::mul(V::load(gradient + i, mask), scales);
      if (u.weight_decay != 0) {
        if (u.decoupled) {
          p = V::mul(p, keep);
        } else {
          g = V::fma(p, decay, g);
        }
      }
      const auto m0 = V::load(mean + i, mask);
      auto m = V::fma(V::sub(g, m0), rest1, m0);
      auto s = V::fma(V::mul(g, g), rest2, V::mul(V::load(square + i, mask), beta2));
      if (flush) {
        m = without_subnormals<T>(m);
        s = without_subnormals<T>(s);
      }
      V::store(mean + i, m, mask);
      V::store(square + i, s, mask);
      if (square_max) {
        s = V::max(V::load(square_max + i, mask), s);
        V::store(square_max + i, s, mask);
      }
      const auto quotient = V::div(m, V::add(V::sqrt(s), eps));
      V::store(parameter + i, V::fma(quotient, rate, p), mask);
    }
  }
}
