// The activations, each with all there is to know of it: its names, what backward reads of it, its
// parameters, value(z, p) and gradient(g, s, p) = g · activation'(s), of the vector registers
// Vec<T>::Reg. s is what `saved` tells, p are the parameters. Formulas, order of operations and
// with them the results at NaN and infinity are torch's.
//
// To add one: a struct, and its name at the end of the list below. Included inside a target region,
// after math-inl.h.

struct Identity {
  static constexpr ActivationInfo info{"identity", "Identity", Saved::nothing};
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>*) {
    return z;
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T>, const Reg<T>*) {
    return g;
  }
};

struct ReLU {
  static constexpr ActivationInfo info{"relu", "ReLU", Saved::output};
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>*) {
    using V = Vec<T>;
    return V::max(V::zero(), z);
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T> y, const Reg<T>*) {
    using V = Vec<T>;
    return V::select(V::is_not_positive(y), V::zero(), g);
  }
};

struct LeakyReLU {
  static constexpr ActivationInfo info{
      "leaky_relu", "LeakyReLU", Saved::sums, {{"negative_slope", 0.01}}};
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>* p) {
    using V = Vec<T>;
    return V::select(V::is_positive(z), z, V::mul(z, p[0]));
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T> z, const Reg<T>* p) {
    using V = Vec<T>;
    return V::select(V::is_positive(z), g, V::mul(g, p[0]));
  }
};

// What ELU, SELU and CELU share: `above` where z is above 0, below it factor·(exp(x) - 1), and
// their slopes.
template <typename T>
FASTMLP_INLINE Reg<T> exponential_below(Reg<T> z, Reg<T> x, Reg<T> factor, Reg<T> above) {
  using V = Vec<T>;
  return V::select(V::is_not_positive(z), V::mul(expm1<T>(x), factor), above);
}
template <typename T>
FASTMLP_INLINE Reg<T> exponential_slope_below(Reg<T> z, Reg<T> x, Reg<T> factor, Reg<T> above) {
  using V = Vec<T>;
  return V::select(V::is_positive(z), above, V::mul(factor, exp<T>(x)));
}

// Clevert, Unterthiner and Hochreiter 2016.
struct ELU {
  static constexpr ActivationInfo info{"elu", "ELU", Saved::sums, {{"alpha", 1}}};
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>* p) {
    return exponential_below<T>(z, z, p[0], z);
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T> z, const Reg<T>* p) {
    return exponential_slope_below<T>(z, z, Vec<T>::mul(g, p[0]), g);
  }
};

struct Sigmoid {
  static constexpr ActivationInfo info{"sigmoid", "Sigmoid", Saved::output};
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>*) {
    return sigmoid<T>(z);
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T> y, const Reg<T>*) {
    using V = Vec<T>;
    return V::mul(V::mul(g, V::sub(V::set1(T(1)), y)), y);
  }
};

struct Tanh {
  static constexpr ActivationInfo info{"tanh", "Tanh", Saved::output};
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>*) {
    return tanh<T>(z);
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T> y, const Reg<T>*) {
    using V = Vec<T>;
    return V::mul(g, V::fma(V::sub(V::zero(), y), y, V::set1(T(1))));
  }
};

// Hendrycks and Gimpel 2016: z·Φ(z).
struct GELU {
  static constexpr ActivationInfo info{"gelu",  "GELU",        Saved::sums, {},
                                       nullptr, "approximate", "none"};
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>*) {
    return Vec<T>::mul(z, Normal<T>(z).cdf);
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T> z, const Reg<T>*) {
    using V = Vec<T>;
    const Normal<T> normal(z);
    return V::mul(g, V::fma(z, normal.pdf, normal.cdf));
  }
};

// The same approximately: z/2·(1 + tanh(√(2/π)·(z + 0.044715·z³))).
struct GELUTanh {
  static constexpr ActivationInfo info{"gelu_tanh", "GELU",        Saved::sums, {},
                                       "gelu",      "approximate", "tanh"};
  static constexpr double kRootTwoOverPi = 0.79788456080286535588, kCubic = 0.044715;
  template <typename T>
  static FASTMLP_INLINE Reg<T> inner(Reg<T> z) {
    using V = Vec<T>;
    const auto cube = V::mul(V::mul(z, z), z);
    return V::mul(V::set1(T(kRootTwoOverPi)), V::fma(V::set1(T(kCubic)), cube, z));
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>*) {
    using V = Vec<T>;
    return V::mul(V::mul(V::set1(T(0.5)), z), V::add(V::set1(T(1)), tanh<T>(inner<T>(z))));
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T> z, const Reg<T>*) {
    using V = Vec<T>;
    const auto one = V::set1(T(1)), half = V::set1(T(0.5));
    const auto t = tanh<T>(inner<T>(z));
    const auto left = V::mul(half, V::add(one, t));
    const auto slope_of_inner =
        V::mul(V::set1(T(kRootTwoOverPi)), V::fma(V::set1(T(3 * kCubic)), V::mul(z, z), one));
    const auto right =
        V::mul(V::mul(V::mul(half, z), V::fma(V::sub(V::zero(), t), t, one)), slope_of_inner);
    return V::mul(g, V::add(left, right));
  }
};

// Elfwing, Uchibe and Doya 2018: z·σ(z).
struct SiLU {
  static constexpr ActivationInfo info{"silu", "SiLU", Saved::sums};
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>*) {
    using V = Vec<T>;
    return V::div(z, V::add(V::set1(T(1)), exp<T>(V::sub(V::zero(), z))));
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T> z, const Reg<T>*) {
    using V = Vec<T>;
    const auto one = V::set1(T(1)), p = sigmoid<T>(z);
    return V::mul(V::mul(g, p), V::fma(z, V::sub(one, p), one));
  }
};

// Misra 2019: z·tanh(log(1 + exp(z))). With e = exp(z) and n = e·(e + 2), the tanh is n / (n + 2).
struct Mish {
  static constexpr ActivationInfo info{"mish", "Mish", Saved::sums};
  static constexpr double kLinear = 40;  // from here on the tanh is 1
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>*) {
    using V = Vec<T>;
    const auto two = V::set1(T(2)), e = exp<T>(V::min(V::set1(T(kLinear)), z));
    const auto n = V::mul(e, V::add(e, two));
    return V::mul(z, V::div(n, V::add(n, two)));
  }
  // tanh + z·(1 - tanh²)·σ(z) = (n + 4z·e·(1 + e) / (n + 2)) / (n + 2).
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T> z, const Reg<T>*) {
    using V = Vec<T>;
    const auto one = V::set1(T(1)), two = V::set1(T(2));
    const auto least = V::min(V::set1(T(kLinear)), z), e = exp<T>(least);
    const auto n = V::mul(e, V::add(e, two)), r = V::div(one, V::add(n, two));
    // z - z keeps what torch makes of an infinity. The products beside a subnormal e are none.
    const auto x = V::mul(V::add(least, V::sub(z, z)), without_subnormals<T>(e));
    const auto bend = V::mul(V::mul(V::mul(x, V::set1(T(4))), r), V::add(one, e));
    return V::mul(g, V::fma(bend, r, V::mul(n, r)));
  }
};

// log(1 + exp(beta·z)) / beta, and z above the threshold (Dugas et al. 2001).
struct Softplus {
  static constexpr ActivationInfo info{
      "softplus", "Softplus", Saved::sums, {{"beta", 1}, {"threshold", 20}}};
  template <typename T>
  static FASTMLP_INLINE Reg<T> is_linear(Reg<T> x, Reg<T> threshold, Reg<T> z, Reg<T> other) {
    using V = Vec<T>;
    return V::select(V::is_positive(V::sub(x, threshold)), z, other);
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>* p) {
    using V = Vec<T>;
    const auto x = V::mul(z, p[0]);
    const auto e = exp<T>(V::sub(V::zero(), V::abs(x)));
    return is_linear<T>(x, p[1], z, V::div(softplus<T>(x, e), p[0]));
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T> z, const Reg<T>* p) {
    using V = Vec<T>;
    const auto x = V::mul(z, p[0]), e = exp<T>(x);
    return is_linear<T>(x, p[1], g, V::div(V::mul(g, e), V::add(e, V::set1(T(1)))));
  }
};

// Howard et al. 2019: z·min(max(z + 3, 0), 6) / 6.
struct Hardswish {
  static constexpr ActivationInfo info{"hardswish", "Hardswish", Saved::sums};
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>*) {
    using V = Vec<T>;
    const auto rise = V::max(V::zero(), V::add(z, V::set1(T(3))));
    return V::div(V::mul(z, V::min(V::set1(T(6)), rise)), V::set1(T(6)));
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T> z, const Reg<T>*) {
    using V = Vec<T>;
    const auto three = V::set1(T(3));
    const auto slope = V::add(V::div(z, three), V::set1(T(0.5)));
    // NaN lies between, as in torch.
    const auto rest = V::select(V::is_not_positive(V::sub(three, z)), g, V::mul(g, slope));
    return V::select(V::is_not_positive(V::add(z, three)), V::zero(), rest);
  }
};

// Klambauer et al. 2017.
struct SELU {
  static constexpr ActivationInfo info{"selu", "SELU", Saved::sums};
  static constexpr double kAlpha = 1.6732632423543772848, kScale = 1.0507009873554804934;
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>*) {
    using V = Vec<T>;
    return exponential_below<T>(z, z, V::set1(T(kAlpha * kScale)), V::mul(z, V::set1(T(kScale))));
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T> z, const Reg<T>*) {
    using V = Vec<T>;
    return exponential_slope_below<T>(z, z, V::mul(g, V::set1(T(kAlpha * kScale))),
                                      V::mul(g, V::set1(T(kScale))));
  }
};

// Barron 2017.
struct CELU {
  static constexpr ActivationInfo info{
      "celu", "CELU", Saved::sums, {{"alpha", 1, Parameter::not_zero}}};
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>* p) {
    return exponential_below<T>(z, Vec<T>::div(z, p[0]), p[0], z);
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T> z, const Reg<T>* p) {
    return exponential_slope_below<T>(z, Vec<T>::div(z, p[0]), g, g);
  }
};

// Krizhevsky 2010. Torch's module is a Hardtanh, whose bounds may be set.
struct ReLU6 {
  static constexpr ActivationInfo info{
      "relu6",
      "ReLU6",
      Saved::sums,
      {{"min_val", 0}, {"max_val", 6, Parameter::not_below_the_one_before}},
      "hardtanh"};
  template <typename T>
  static FASTMLP_INLINE Reg<T> value(Reg<T> z, const Reg<T>* p) {
    using V = Vec<T>;
    return V::min(p[1], V::max(p[0], z));
  }
  template <typename T>
  static FASTMLP_INLINE Reg<T> gradient(Reg<T> g, Reg<T> z, const Reg<T>* p) {
    using V = Vec<T>;
    const auto below_most = V::select(V::is_positive(V::sub(p[1], z)), g, V::zero());
    return V::select(V::is_positive(V::sub(z, p[0])), below_most, V::zero());
  }
};

// Their places are their numbers: append, never reorder.
using Activations = List<Identity, ReLU, LeakyReLU, ELU, Sigmoid, Tanh, GELU, GELUTanh, SiLU, Mish,
                         Softplus, Hardswish, SELU, CELU, ReLU6>;
