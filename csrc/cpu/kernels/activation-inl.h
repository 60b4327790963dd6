// Activations and their derivatives. Included inside a target region, after vec_<isa>.h.

// Polynomial coefficients, lowest power first, from Chebyshev interpolation at 50 digits
// (mpmath.chebyfit).
template <typename T>
struct Coefficients;

template <>
struct Coefficients<float> {
  // (exp(r) - 1 - r) / r² for |r| <= ln(2)/2.
  static constexpr float expm1[] = {0.5000000013f,  0.1666666668f,   0.0416664646f,
                                    0.00833331089f, 0.001393368586f, 0.0001989103065f};
  // (1 + 2z)·exp(z²)·erfc(z) in t = (z - 3)/(z + 3), z >= 0: the form of Shepherd and Laframboise
  // (1981).
  static constexpr float erfc[] = {1.253008059f,      -0.1356211087f,   -0.04756240441f,
                                   0.1296452434f,     -0.1192713771f,   0.06830799958f,
                                   -0.02378773599f,   0.002520801146f,  0.001943095161f,
                                   -0.0007303181188f, -0.000165138855f, 4.188165159e-5f};
  // (Φ(x) - 1/2) / x in x², |x| <= 1, and (tanh(x)/x - 1) / x² in x², |x| <= 0.6.
  static constexpr float cdf[] = {0.3989422804f,    -0.06649037966f,  0.00997355047f,
                                  -0.001187288744f, 0.0001153207457f, -9.274401262e-6f,
                                  5.372643165e-7f};
  static constexpr float tanh[] = {-0.3333333333f,   0.1333333239f,    -0.05396782959f,
                                   0.02186230766f,   -0.008804699129f, 0.003341779279f,
                                   -0.0008965438806f};
  static constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float exp_max = 89.0f, exp_min = -104.0f;
  static constexpr float tanh_max = 9.5f;
};

template <>
struct Coefficients<double> {
  static constexpr double expm1[] = {0.5,
                                     0.166666666666666667,
                                     0.0416666666666666768,
                                     0.00833333333333333401,
                                     0.00138888888888790425,
                                     0.000198412698412632782,
                                     0.0000248015873365260037,
                                     2.75573192472745626e-6,
                                     2.75572631894762074e-7,
                                     2.50520710345651176e-8,
                                     2.09181708766587826e-9,
                                     1.60866500445782111e-10};
  static constexpr double erfc[] = {
      1.25300805826972965,      -0.135621106124581192,     -0.0475622943534512075,
      0.129645158702762492,     -0.119273663415272818,     0.0683080273439309555,
      -0.0237705149196924453,   0.00252939181650750323,    0.00188869037407362211,
      -0.000779832272740404018, -0.00010515991887929707,   0.00012509933421526814,
      4.95007066199143124e-6,   -0.0000201004082367726073, -7.33379103228011852e-7,
      3.47174481519511455e-6,   3.60790345401853509e-7,    -6.14962730151092368e-7,
      -1.47117987935046149e-7,  9.91882074949104858e-8,    4.6709552447864997e-8,
      -1.06784326207926641e-8,  -1.1017857734911826e-8,    -4.99902425779604756e-10,
      1.45676545510825921e-9,   3.65068563207906805e-10};
  static constexpr double cdf[] = {
      0.398942280401432678,     -0.0664903800669054461,  0.00997355701003580618,
      -0.00118732821548025312,  0.000115434687614210867, -9.44465624841315601e-6,
      6.6596931149158881e-7,    -4.12265783726645299e-8, 2.27337701734683168e-9,
      -1.12850021440596672e-10, 5.00303345891936805e-12, -1.68782316318968759e-13};
  static constexpr double tanh[] = {
      -0.333333333333333333,    0.133333333333333331,      -0.0539682539682536059,
      0.0218694885361293479,    -0.00886323552893786559,   0.00359212801498493325,
      -0.00145583407319792405,  0.000590024333483905035,   -0.000239107572500259179,
      0.0000968094352162404063, -0.0000389084977006771228, 0.000015014299115711977,
      -4.94569267003468828e-6,  9.9163724164162417e-7};
  static constexpr double ln2_high = 6.93147180369123816490e-01,
                          ln2_low = 1.90821492927058770002e-10;
  static constexpr double exp_max = 710.0, exp_min = -746.0;
  static constexpr double tanh_max = 20.0;
};

template <typename T, int terms>
FASTMLP_INLINE typename Vec<T>::Reg polynomial(typename Vec<T>::Reg x,
                                               const T (&coefficients)[terms]) {
  auto sum = Vec<T>::set1(coefficients[terms - 1]);
  FASTMLP_UNROLL
  for (int i = terms - 2; i >= 0; --i) sum = Vec<T>::fma(sum, x, Vec<T>::set1(coefficients[i]));
  return sum;
}

// exp(x) = 2^n · exp(r) with n = round(x / ln 2) and |r| <= ln(2)/2, in the pieces from which exp
// and expm1 are put together: 2^n is applied in two halves so that neither overflows before the
// result does. NaN goes through.
template <typename T>
struct SplitExp {
  using V = Vec<T>;
  typename V::Reg high, low;  // n = high + low
  typename V::Reg remainder;  // exp(r) - 1

  FASTMLP_INLINE explicit SplitExp(typename V::Reg x) {
    using C = Coefficients<T>;
    x = V::max(V::set1(C::exp_min), V::min(V::set1(C::exp_max), x));
    const auto n = V::round(V::mul(x, V::set1(T(1.442695040888963407))));
    auto r = V::fma(n, V::set1(-C::ln2_high), x);
    r = V::fma(n, V::set1(-C::ln2_low), r);
    remainder = V::fma(V::mul(r, r), polynomial<T>(r, C::expm1), r);
    low = V::floor(V::mul(n, V::set1(T(0.5))));
    high = V::sub(n, low);
  }
};

template <typename T>
FASTMLP_INLINE typename Vec<T>::Reg exp(typename Vec<T>::Reg x) {
  using V = Vec<T>;
  const SplitExp<T> s(x);
  return V::times_exp2(V::times_exp2(V::add(s.remainder, V::set1(T(1))), s.high), s.low);
}

template <typename T>
FASTMLP_INLINE typename Vec<T>::Reg expm1(typename Vec<T>::Reg x) {
  using V = Vec<T>;
  const SplitExp<T> s(x);
  const auto one = V::set1(T(1));
  const auto whole =
      V::sub(V::times_exp2(one, s.high), V::times_exp2(one, V::sub(V::zero(), s.low)));
  return V::times_exp2(V::add(V::times_exp2(s.remainder, s.high), whole), s.low);
}

template <typename T>
FASTMLP_INLINE typename Vec<T>::Reg sigmoid(typename Vec<T>::Reg x) {
  using V = Vec<T>;
  const auto one = V::set1(T(1));
  return V::div(one, V::add(one, exp<T>(V::sub(V::zero(), x))));
}

template <typename T>
FASTMLP_INLINE typename Vec<T>::Reg tanh(typename Vec<T>::Reg x) {
  using V = Vec<T>;
  const auto magnitude = V::min(V::set1(Coefficients<T>::tanh_max), V::abs(x));
  const auto e = expm1<T>(V::add(magnitude, magnitude));
  const auto far = V::div(e, V::add(e, V::set1(T(2))));
  const auto square = V::mul(magnitude, magnitude);
  const auto near =
      V::fma(V::mul(magnitude, square), polynomial<T>(square, Coefficients<T>::tanh), magnitude);
  const auto is_far = V::is_positive(V::sub(magnitude, V::set1(T(0.6))));
  return V::with_sign_of(V::select(is_far, far, near), x);
}

// The standard normal distribution's Φ(x) and φ(x), which share exp(-x²/2).
template <typename T>
struct Normal {
  using V = Vec<T>;
  typename V::Reg cdf, pdf;

  FASTMLP_INLINE explicit Normal(typename V::Reg x) {
    const auto one = V::set1(T(1));
    const auto gauss = exp<T>(V::mul(V::mul(x, x), V::set1(T(-0.5))));
    // Beyond z = 40 the Gauss factor is zero in either dtype; the limit keeps infinity out of t.
    const auto z = V::min(V::set1(T(40)), V::mul(V::abs(x), V::set1(T(0.70710678118654752440))));
    const auto t = V::div(V::sub(z, V::set1(T(3))), V::add(z, V::set1(T(3))));
    const auto scaled =
        V::div(polynomial<T>(t, Coefficients<T>::erfc), V::fma(V::set1(T(2)), z, one));
    const auto half_erfc = V::mul(V::mul(V::set1(T(0.5)), gauss), scaled);
    const auto far = V::select(V::is_positive(x), V::sub(one, half_erfc), half_erfc);
    const auto square = V::mul(x, x);
    const auto near = V::fma(x, polynomial<T>(square, Coefficients<T>::cdf), V::set1(T(0.5)));
    cdf = V::select(V::is_not_positive(V::sub(square, one)), near, far);
    pdf = V::mul(gauss, V::set1(T(0.39894228040143267794)));
  }
};

// Each activation: value(z, slope), and gradient(g, saved, slope) = g · activation'(saved).
// Formulas, order of operations and with them the results at NaN and infinity are torch's.
template <typename T, Activation activation>
struct ActivationMath {
  using V = Vec<T>;
  using Reg = typename V::Reg;

  static FASTMLP_INLINE Reg value(Reg z, Reg slope) {
    const auto one = V::set1(T(1));
    if constexpr (activation == Activation::relu) return V::max(V::zero(), z);
    if constexpr (activation == Activation::leaky_relu)
      return V::select(V::is_positive(z), z, V::mul(z, slope));
    if constexpr (activation == Activation::elu)
      return V::select(V::is_not_positive(z), V::mul(expm1<T>(z), slope), z);
    if constexpr (activation == Activation::sigmoid) return sigmoid<T>(z);
    if constexpr (activation == Activation::tanh) return tanh<T>(z);
    if constexpr (activation == Activation::gelu) return V::mul(z, Normal<T>(z).cdf);
    if constexpr (activation == Activation::gelu_tanh) {
      return V::mul(V::mul(V::set1(T(0.5)), z), V::add(one, tanh<T>(inner(z))));
    }
    if constexpr (activation == Activation::silu)
      return V::div(z, V::add(one, exp<T>(V::sub(V::zero(), z))));
    return z;
  }

  static FASTMLP_INLINE Reg gradient(Reg g, Reg s, Reg slope) {
    const auto one = V::set1(T(1));
    if constexpr (activation == Activation::relu)
      return V::select(V::is_not_positive(s), V::zero(), g);
    if constexpr (activation == Activation::leaky_relu)
      return V::select(V::is_positive(s), g, V::mul(g, slope));
    if constexpr (activation == Activation::elu) {
      return V::select(V::is_positive(s), g, V::mul(V::mul(g, slope), exp<T>(s)));
    }
    if constexpr (activation == Activation::sigmoid) return V::mul(V::mul(g, V::sub(one, s)), s);
    if constexpr (activation == Activation::tanh)
      return V::mul(g, V::fma(V::sub(V::zero(), s), s, one));
    if constexpr (activation == Activation::gelu) {
      const Normal<T> normal(s);
      return V::mul(g, V::fma(s, normal.pdf, normal.cdf));
    }
    if constexpr (activation == Activation::gelu_tanh) {
      const auto t = tanh<T>(inner(s));
      const auto left = V::mul(V::set1(T(0.5)), V::add(one, t));
      const auto slope_of_inner =
          V::mul(V::set1(T(kRootTwoOverPi)), V::fma(V::set1(T(3 * kCubic)), V::mul(s, s), one));
      const auto right = V::mul(
          V::mul(V::mul(V::set1(T(0.5)), s), V::fma(V::sub(V::zero(), t), t, one)), slope_of_inner);
      return V::mul(g, V::add(left, right));
    }
    if constexpr (activation == Activation::silu) {
      const auto p = sigmoid<T>(s);
      return V::mul(V::mul(g, p), V::fma(s, V::sub(one, p), one));
    }
    return g;
  }

 private:
  // gelu_tanh (Hendrycks and Gimpel 2016): z/2·(1 + tanh(√(2/π)·(z + 0.044715·z³))).
  static constexpr double kRootTwoOverPi = 0.79788456080286535588, kCubic = 0.044715;
  static FASTMLP_INLINE Reg inner(Reg z) {
    const auto cube = V::mul(V::mul(z, z), z);
    return V::mul(V::set1(T(kRootTwoOverPi)), V::fma(V::set1(T(kCubic)), cube, z));
  }
};

// Walks [rows, n] by vectors: to each (row, column), with the mask of the elements that are there,
// `store` is given what `load` has made of it. Some rows are loaded before the first of them is
// stored: a masked store and a masked load of the neighbouring row look to the processor as if they
// overlapped, and the load waits (33 of 90 µs for a layer 8-8 at batch 4096).
constexpr int kRowsAtOnce = 4;

template <typename T, typename Load, typename Store>
FASTMLP_INLINE void by_vectors(int64_t rows, int64_t n, const Load& load, const Store& store) {
  using V = Vec<T>;
  for (int64_t i = 0; i < rows; i += kRowsAtOnce) {
    const int64_t count = rows - i < kRowsAtOnce ? rows - i : kRowsAtOnce;
    for (int64_t j = 0; j < n; j += V::width) {
      const auto mask = V::first(n - j < V::width ? n - j : V::width);
      typename V::Reg value[kRowsAtOnce];
      FASTMLP_UNROLL
      for (int r = 0; r < kRowsAtOnce; ++r) {
        if (r < count) value[r] = load(i + r, j, mask);
      }
      FASTMLP_UNROLL
      for (int r = 0; r < kRowsAtOnce; ++r) {
        if (r >= count) break;
        store(i + r, j, mask, value[r]);
      }
    }
  }
}

template <typename T, int activation>
void activate(int64_t rows, int64_t n, T* z, T* y, int64_t stride, const T* bias, T slope) {
  using V = Vec<T>;
  using Math = ActivationMath<T, static_cast<Activation>(activation)>;
  const auto slopes = V::set1(slope);
  by_vectors<T>(
      rows, n,
      [&](int64_t i, int64_t j, auto mask) FASTMLP_INLINED {
        const auto sum = V::load(z + i * stride + j, mask);
        return bias ? V::add(sum, V::load(bias + j, mask)) : sum;
      },
      [&](int64_t i, int64_t j, auto mask, auto sum) FASTMLP_INLINED {
        if (z != y) V::store(z + i * stride + j, sum, mask);
        V::store(y + i * stride + j, Math::value(sum, slopes), mask);
      });
}

template <typename T, int activation>
void derive(int64_t rows, int64_t n, const T* incoming, int64_t incoming_stride, const T* saved,
            int64_t saved_stride, T* grad, int64_t grad_stride, T slope) {
  using V = Vec<T>;
  using Math = ActivationMath<T, static_cast<Activation>(activation)>;
  const auto slopes = V::set1(slope);
  by_vectors<T>(
      rows, n,
      [&](int64_t i, int64_t j, auto mask)
          FASTMLP_INLINED { return V::load(incoming + i * incoming_stride + j, mask); },
      [&](int64_t i, int64_t j, auto mask, auto g) FASTMLP_INLINED {
        const auto s = V::load(saved + i * saved_stride + j, mask);
        V::store(grad + i * grad_stride + j, Math::gradient(g, s, slopes), mask);
      });
}

template <typename T>
void combine(int64_t rows, int64_t n, const T* a, int64_t a_stride, const T* factor,
             const T* addend, int64_t addend_stride, T* c, int64_t c_stride) {
  using V = Vec<T>;
  by_vectors<T>(
      rows, n,
      [&](int64_t i, int64_t j, auto mask) FASTMLP_INLINED {
        auto value = V::load(a + i * a_stride + j, mask);
        if (factor) value = V::mul(value, V::load(factor + i * c_stride + j, mask));
        if (addend) value = V::add(value, V::load(addend + i * addend_stride + j, mask));
        return value;
      },
      [&](int64_t i, int64_t j, auto mask, auto value)
          FASTMLP_INLINED { V::store(c + i * c_stride + j, value, mask); });
}
