// torch.optim.Adam and AdamW: Kingma and Ba 2015; AMSGrad: Reddi et al. 2018; decoupled weight
// decay: Loshchilov and Hutter 2019.
struct AdamOrAdamW : AdamsKin {
  enum OwnOption { kAmsgrad = kFirstOwn, kDecoupled };
  enum OwnState { kSquareMax = kSquare + 1 };
  enum Number { kCorrection1, kCorrection2 };  // 1 - beta1^step, √(1 - beta2^step)

  static bool has_maximum(const double* o) { return o[kAmsgrad] != 0; }
  static void advance(Update& u) {
    const double step = u.count_step();
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
    const Averages<T> averages;
    const bool has_maximum;
    const Reg<T> eps, rate;

    static constexpr int kUsualStates = kSquareMax;  // the first
    static bool is_usual(const Update& u) {
      return !u.states[kSquareMax] && Averages<T>::are_usual(u.options, u.options[kDecoupled] != 0);
    }
    FASTMLP_INLINE explicit Rule(const Update& u, bool usual = false)
        : averages(u.options, u.options[kDecoupled] != 0, usual),
          has_maximum(!usual && u.states[kSquareMax]),
          // rate · m / (√s / root + eps), with both sides of the fraction multiplied by root: a
          // division takes as long as ten other operations.
          eps(V::set1(T(u.options[kEps] * u.numbers[kCorrection2]))),
          rate(V::set1(T(-u.options[kLr] / u.numbers[kCorrection1] * u.numbers[kCorrection2]))) {}

    FASTMLP_INLINE void operator()(Reg<T>& p, Reg<T> g, Reg<T>* states) const {
      auto [m, s] = averages.next(p, g, states);
      if (has_maximum) s = states[kSquareMax] = maximum<T>(states[kSquareMax], s);
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
