// torch.optim.Adam and AdamW: Kingma and Ba 2015; AMSGrad: Reddi et al. 2018; decoupled weight
// decay: Loshchilov and Hutter 2019.
struct AdamOrAdamW {
  enum Option { kLr, kBeta1, kBeta2, kEps, kWeightDecay, kAmsgrad, kDecoupled };
  enum State { kMean, kSquare, kSquareMax };
  enum Number { kCorrection1, kCorrection2 };  // 1 - beta1^step, √(1 - beta2^step)

  static bool has_maximum(const double* o) { return o[kAmsgrad] != 0; }
  static void advance(Update& u) {
    const double step = u.scalars[0] += 1;
    u.numbers[kCorrection1] = 1 - std::pow(u.options[kBeta1], step);
    u.numbers[kCorrection2] = std::sqrt(1 - std::pow(u.options[kBeta2], step));
  }

  // decoupled: what the option is where torch has not got it.
  static constexpr OptimizerInfo info_of(const char* name, double decoupled) {
    return {name,
            {{"lr"},
             {"betas", OptionInfo::pair},
             {"eps"},
             {"weight_decay"},
             {"amsgrad", OptionInfo::flag},
             {"decoupled_weight_decay", OptionInfo::flag, true, decoupled}},
            {{"exp_avg"}, {"exp_avg_sq"}, {"max_exp_avg_sq", has_maximum}},
            {{"step"}},
            advance};
  }
  template <typename T>
  struct Rule {
    using V = Vec<T>;
    const bool decays, decoupled, has_maximum, flushes;
    const Reg<T> decay, keep, rest1, beta2, rest2, eps, rate;

    FASTMLP_INLINE explicit Rule(const Update& u)
        : decays(u.options[kWeightDecay] != 0),
          decoupled(u.options[kDecoupled] != 0),
          has_maximum(u.states[kSquareMax]),
          // Beside a larger eps the root of a subnormal square is less than half a unit in the last
          // place, even in the first steps, when it counts thirty times.
          flushes(u.options[kEps] > 0x1p-35),
          decay(V::set1(T(u.options[kWeightDecay]))),
          keep(V::set1(T(1 - u.options[kLr] * u.options[kWeightDecay]))),
          rest1(V::set1(T(1 - u.options[kBeta1]))),
          beta2(V::set1(T(u.options[kBeta2]))),
          rest2(V::set1(T(1 - u.options[kBeta2]))),
          // rate · m / (√s / root + eps), with both sides of the fraction multiplied by root: a
          // division takes as long as ten other operations.
          eps(V::set1(T(u.options[kEps] * u.numbers[kCorrection2]))),
          rate(V::set1(T(-u.options[kLr] / u.numbers[kCorrection1] * u.numbers[kCorrection2]))) {}

    FASTMLP_INLINE void operator()(Reg<T>& p, Reg<T> g, Reg<T>* states) const {
      if (decays) {
        if (decoupled) {
          p = V::mul(p, keep);
        } else {
          g = V::fma(p, decay, g);
        }
      }
      auto m = V::fma(V::sub(g, states[kMean]), rest1, states[kMean]);
      auto s = V::fma(V::mul(g, g), rest2, V::mul(states[kSquare], beta2));
      if (flushes) {
        m = without_subnormals<T>(m);
        s = without_subnormals<T>(s);
      }
      states[kMean] = m;
      states[kSquare] = s;
      if (has_maximum) {
        s = maximum<T>(states[kSquareMax], s);
        states[kSquareMax] = s;
      }
      p = V::fma(V::div(m, V::add(V::sqrt(s), eps)), rate, p);
    }
  };
};

struct Adam : AdamOrAdamW {
  static constexpr OptimizerInfo info = info_of("Adam", 0);
};

struct AdamW : AdamOrAdamW {
  static constexpr OptimizerInfo info = info_of("AdamW", 1);
};
