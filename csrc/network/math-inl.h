// Elementary functions. Included inside a target region, after vec_<isa>.h.

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
  typename V::Reg n;
  typename V::Reg remainder;  // exp(r) - 1

  FASTMLP_INLINE explicit SplitExp(typename V::Reg x) {
    using C = Coefficients<T>;
    x = V::max(V::set1(C::exp_min), V::min(V::set1(C::exp_max), x));
    n = V::round(V::mul(x, V::set1(T(1.442695040888963407))));
    auto r = V::fma(n, V::set1(-C::ln2_high), x);
    r = V::fma(n, V::set1(-C::ln2_low), r);
    remainder = V::fma(V::mul(r, r), polynomial<T>(r, C::expm1), r);
  }
  // n = high() + low()
  FASTMLP_INLINE typename V::Reg low() const { return V::floor(V::mul(n, V::set1(T(0.5)))); }
  FASTMLP_INLINE typename V::Reg high() const { return V::sub(n, low()); }
};

template <typename T>
FASTMLP_INLINE typename Vec<T>::Reg exp(typename Vec<T>::Reg x) {
  using V = Vec<T>;
  const SplitExp<T> s(x);
  return V::times_exp2(V::times_exp2(V::add(s.remainder, V::set1(T(1))), s.high()), s.low());
}

template <typename T>
FASTMLP_INLINE typename Vec<T>::Reg expm1(typename Vec<T>::Reg x) {
  using V = Vec<T>;
  const SplitExp<T> s(x);
  const auto one = V::set1(T(1));
  const auto whole =
      V::sub(V::times_exp2(one, s.high()), V::times_exp2(one, V::sub(V::zero(), s.low())));
  return V::times_exp2(V::add(V::times_exp2(s.remainder, s.high()), whole), s.low());
}

template <typename T>
FASTMLP_INLINE typename Vec<T>::Reg sigmoid(typename Vec<T>::Reg x) {
  using V = Vec<T>;
  const auto one = V::set1(T(1));
  return V::div(one, V::add(one, exp<T>(V::sub(V::zero(), x))));
}

// By 1 - 2 / (exp(2x) + 1) where nothing cancels. Of so small an exponential 2^n needs no halves,
// and expm1, whose quotient would serve both, takes half as long again as all of this.
template <typename T>
FASTMLP_INLINE typename Vec<T>::Reg tanh(typename Vec<T>::Reg x) {
  using V = Vec<T>;
  const auto one = V::set1(T(1)), two = V::set1(T(2));
  const auto magnitude = V::min(V::set1(Coefficients<T>::tanh_max), V::abs(x));
  const SplitExp<T> s(V::add(magnitude, magnitude));
  const auto e = V::times_exp2(V::add(s.remainder, one), s.n);
  const auto far = V::sub(one, V::div(two, V::add(e, one)));
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

// log(1 + e) for -1/2 <= e <= 1, by the series of 2 artanh(e / (2 + e)), to half a unit of the last
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

// log(1 + exp(x)) without overflow, with e = exp(-|x|).
template <typename T>
FASTMLP_INLINE typename Vec<T>::Reg softplus(typename Vec<T>::Reg x, typename Vec<T>::Reg e) {
  using V = Vec<T>;
  return V::add(log_of_one_and<T>(e), V::max(V::zero(), x));
}

// log(x) = n·ln 2 + log(m) with x = 2^n·m and √½ <= m < √2, so that near 1 nothing cancels. As of
// the C library: -inf of zeros, NaN of what is negative.
template <typename T>
FASTMLP_INLINE typename Vec<T>::Reg log(typename Vec<T>::Reg x) {
  using V = Vec<T>;
  using C = Coefficients<T>;
  using Limits = std::numeric_limits<T>;
  constexpr int digits = Limits::digits;
  const auto zero = V::zero(), one = V::set1(T(1)), half = V::set1(T(0.5));
  // What is subnormal, or would be times √½, gets an exponent of its own.
  const auto is_tiny = V::is_positive(V::sub(V::set1(2 * Limits::min()), x));
  const auto scaled = V::select(is_tiny, V::times_exp2(x, V::set1(T(digits))), x);
  const auto above = V::add(V::exponent(V::mul(scaled, V::set1(T(0.70710678118654752440)))), one);
  const auto low = V::floor(V::mul(above, half)), high = V::sub(above, low);
  const auto m = V::times_exp2(V::times_exp2(scaled, V::sub(zero, high)), V::sub(zero, low));
  const auto n = V::sub(above, V::select(is_tiny, V::set1(T(digits)), zero));
  const auto rest = V::fma(n, V::set1(C::ln2_low), log_of_one_and<T>(V::sub(m, one)));
  const auto finite = V::fma(n, V::set1(C::ln2_high), rest);
  const auto is_infinite = V::is_positive(V::sub(x, V::set1(Limits::max())));
  const auto positive = V::select(is_infinite, x, finite);
  const auto of_zero = V::select(V::is_not_positive(x), V::set1(-Limits::infinity()), x);
  const auto other =
      V::select(V::is_positive(V::sub(zero, x)), V::set1(Limits::quiet_NaN()), of_zero);
  return V::select(V::is_positive(x), positive, other);
}
