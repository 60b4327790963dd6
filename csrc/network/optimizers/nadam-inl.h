// torch.optim.NAdam: Dozat 2016.
struct NAdam : AdamsKin {
  enum OwnOption { kMomentumDecay = kFirstOwn, kDecoupled };
  enum Scalar { kStep, kProduct };
  // √(1 - beta2^step), and the rates of the gradient and of its mean.
  enum Number { kCorrection, kRate, kMeanRate };

  static double momentum(const Update& u, double step) {
    return u.options[kBeta1] * (1 - 0.5 * std::pow(0.96, step * u.options[kMomentumDecay]));
  }
  static void advance(Update& u) {
    const double step = u.count_step(), now = momentum(u, step), next = momentum(u, step + 1);
    double& product = u.scalars[kProduct];
    product = u.rounded(kProduct, product * u.rounded(kProduct, now));
    u.numbers[kCorrection] = std::sqrt(1 - std::pow(u.options[kBeta2], step));
    u.numbers[kRate] = -u.options[kLr] * (1 - now) / (1 - product);
    u.numbers[kMeanRate] = -u.options[kLr] * next / (1 - product * next);
  }

  static constexpr OptimizerInfo info{"NAdam",
                                      {{"lr"},
                                       {"betas", OptionInfo::pair},
                                       {"eps"},
                                       {"weight_decay"},
                                       {"momentum_decay"},
                                       {"decoupled_weight_decay", OptionInfo::flag}},
                                      {{"exp_avg"}, {"exp_avg_sq"}},
                                      {{"step"}, {"mu_product", nullptr, 1}},
                                      advance};

  template <typename T>
  struct Rule {
    using V = Vec<T>;
    const Averages<T> averages;
    const Reg<T> eps, rate, mean_rate;

    FASTMLP_INLINE explicit Rule(const Update& u)
        : averages(u.options, u.options[kDecoupled] != 0),
          // Both sides of the fraction are multiplied by the correction, as in Adam.
          eps(V::set1(T(u.options[kEps] * u.numbers[kCorrection]))),
          rate(V::set1(T(u.numbers[kRate] * u.numbers[kCorrection]))),
          mean_rate(V::set1(T(u.numbers[kMeanRate] * u.numbers[kCorrection]))) {}

    FASTMLP_INLINE void operator()(Reg<T>& p, Reg<T> g, Reg<T>* states) const {
      const auto [m, s] = averages.next(p, g, states);
      const auto sum = V::fma(g, rate, V::mul(m, mean_rate));
      p = V::add(p, V::div(sum, V::add(V::sqrt(s), eps)));
    }
  };
};
