// Loss and optimizer kernels. Included inside a target region, after activation-inl.h.

// Plain C++, which the compiler turns into the vectors of the target.
template <typename T>
void convert(int64_t n, const uint8_t* from, T scale, T shift, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i]) * scale + shift;
}

// p = softmax(z) for each row: exp(z - maximum) / sum, with both factors kept for the logarithm.
// NaN and infinity give NaN, as in torch. n is at least 1.
template <typename T>
void softmax(int64_t rows, int64_t n, const T* z, T* p, T* maximum, T* sum) {
  using V = Vec<T>;
  T lanes[V::width];
  for (int64_t i = 0; i < rows; ++i, z += n, p += n) {
    T greatest = z[0];
    if (n < V::width) {
      for (int64_t j = 1; j < n; ++j) greatest = z[j] > greatest ? z[j] : greatest;
    } else {
      auto most = V::load(z + n - V::width);  // the last ones, of which some come twice
      for (int64_t j = 0; j + V::width <= n; j += V::width) most = V::max(V::load(z + j), most);
      V::store(lanes, most);
      greatest = lanes[0];
      for (int l = 1; l < V::width; ++l) greatest = lanes[l] > greatest ? lanes[l] : greatest;
    }
    const auto shift = V::set1(greatest);
    auto sums = V::zero();
    for (int64_t j = 0; j < n; j += V::width) {
      const auto mask = V::first(n - j < V::width ? n - j : V::width);
      const auto e = exp<T>(V::sub(V::load(z + j, mask), shift));
      V::store(p + j, e, mask);
      if (j + V::width <= n) sums = V::add(sums, e);
    }
    V::store(lanes, sums);
    T total = lanes[0];
    for (int l = 1; l < V::width; ++l) total += lanes[l];
    for (int64_t j = n / V::width * V::width; j < n; ++j) total += p[j];
    const T scale = T(1) / total;
    for (int64_t j = 0; j < n; ++j) p[j] *= scale;
    maximum[i] = greatest;
    sum[i] = total;
  }
}

constexpr int kSums = 8;  // of their own, so that the processor adds them side by side

inline double total(const double (&sums)[kSums]) {
  double all = 0;
  for (const double sum : sums) all += sum;
  return all;
}

template <typename T>
double squared_error(int64_t n, const T* z, const T* target, T scale, T* gradient) {
  double sums[kSums] = {};
  const T slope = 2 * scale;  // first: twice a difference may be infinite where its mean is not
  const auto add = [&](int64_t i, int lane) {
    const T difference = z[i] - target[i];
    gradient[i] = difference * slope;
    sums[lane] += static_cast<double>(difference) * difference;
  };
  int64_t i = 0;
  for (; i + kSums <= n; i += kSums) {
    for (int l = 0; l < kSums; ++l) add(i + l, l);
  }
  for (; i < n; ++i) add(i, 0);
  return total(sums);
}

// log(1 + e) for 0 <= e <= 1, by the series of 2 artanh(e / (2 + e)), to half a unit of the last
// place of 1/9 to the power of its length.
template <typename T>
FASTMLP_INLINE typename Vec<T>::Reg log_of_one_and(typename Vec<T>::Reg e) {
  using V = Vec<T>;
  constexpr int terms = sizeof(T) == 4 ? 8 : 17;
  const auto t = V::div(e, V::add(V::set1(T(2)), e)), square = V::mul(t, t);
  auto series = V::set1(T(1.0 / (2 * terms + 1)));
  for (int k = terms - 1; k >= 0; --k)
    series = V::fma(series, square, V::set1(T(1.0 / (2 * k + 1))));
  return V::mul(V::add(t, t), series);
}

// (1 - t)·z + l·log(1 + exp(-z)) with l = 1 + (positive_weight - 1)·t, without overflow.
template <typename T>
double bce_with_logits(int64_t n, const T* logits, const T* target, const T* weight,
                       const T* positive_weight, T scale, T* gradient) {
  using V = Vec<T>;
  const auto zero = V::zero(), one = V::set1(T(1)), scales = V::set1(scale);
  double sums[V::width] = {};
  for (int64_t i = 0; i < n; i += V::width) {
    const auto mask = V::first(n - i < V::width ? n - i : V::width);
    const auto z = V::load(logits + i, mask), t = V::load(target + i, mask);
    const auto rest = V::sub(one, t);
    auto l = one;
    if (positive_weight) l = V::fma(V::sub(V::load(positive_weight + i, mask), one), t, one);
    const auto e = exp<T>(V::sub(zero, V::abs(z)));
    const auto softplus = V::add(log_of_one_and<T>(e), V::max(V::sub(zero, z), zero));
    const auto sigmoid_of_minus = V::div(V::select(V::is_positive(z), e, one), V::add(one, e));
    auto value = V::fma(l, softplus, V::mul(rest, z));
    auto slope = V::sub(rest, V::mul(l, sigmoid_of_minus));
    if (weight) {
      const auto w = V::load(weight + i, mask);
      value = V::mul(w, value);
      slope = V::mul(w, slope);
    }
    V::store(gradient + i, V::mul(slope, scales), mask);
    T lanes[V::width];
    V::store(lanes, value);
    const int64_t count = n - i < V::width ? n - i : V::width;
    for (int64_t k = 0; k < count; ++k) sums[k] += lanes[k];
  }
  double all = 0;
  for (const double sum : sums) all += sum;
  return all;
}

// Zero in place of subnormal numbers. What decays without end, as the moments of a gradient that
// stays zero, ends at them, and each operation on one takes as long as a hundred others.
template <typename T>
FASTMLP_INLINE typename Vec<T>::Reg without_subnormals(typename Vec<T>::Reg a) {
  using V = Vec<T>;
  const auto excess = V::sub(V::abs(a), V::set1(std::numeric_limits<T>::min()));
  return V::select(V::is_not_positive(excess), V::zero(), a);  // NaN stays
}

// torch.maximum: NaN where one of them is. Vec's max gives b then.
template <typename T>
FASTMLP_INLINE typename Vec<T>::Reg maximum(typename Vec<T>::Reg a, typename Vec<T>::Reg b) {
  using V = Vec<T>;
  const auto most = V::max(a, b);
  return V::select(V::is_positive(a), most, V::select(V::is_not_positive(a), most, a));
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
        s = maximum<T>(V::load(square_max + i, mask), s);
        V::store(square_max + i, s, mask);
      }
      const auto quotient = V::div(m, V::add(V::sqrt(s), eps));
      V::store(parameter + i, V::fma(quotient, rate, p), mask);
    }
  }
}
