// torch.optim.RAdam: Liu et al. 2020.
struct RAdam : AdamsKin {
  enum OwnOption { kDecoupled = kFirstOwn };
  enum Number { kRectified, kRate };  // whether the mean is divided by the square's root

  static void advance(Update& u) {
    const double step = u.count_step(), beta2 = u.options[kBeta2], power = std::pow(beta2, step);
    // The length of the simple average that the one of the squares is like, in the end and now.
    const double most = 2 / (1 - beta2) - 1;
    const double length = most - 2 * step * power / (1 - power);
    u.numbers[kRectified] = length > 5;
    u.numbers[kRate] = -u.options[kLr] / (1 - std::pow(u.options[kBeta1], step));
    if (length > 5) {
      u.numbers[kRate] *= std::sqrt((length - 4) * (length - 2) * most /
                                    ((most - 4) * (most - 2) * length) * (1 - power));
    }
  }

  static constexpr OptimizerInfo info{"RAdam",
                                      {{"lr"},
                                       {"betas", OptionInfo::pair},
                                       {"eps"},
                                       {"weight_decay"},
                                       {"decoupled_weight_decay", OptionInfo::flag}},
                                      {{"exp_avg"}, {"exp_avg_sq"}},
                                      {{"step"}},
                                      advance};

  template <typename T>
  struct Rule {
    using V = Vec<T>;
    const Averages<T> averages;
    const bool rectified;
    const Reg<T> eps, rate;

    FASTMLP_INLINE explicit Rule(const Update& u)
        : averages(u.options, u.options[kDecoupled] != 0),
          rectified(u.numbers[kRectified] != 0),
          eps(V::set1(T(u.options[kEps]))),
          rate(V::set1(T(u.numbers[kRate]))) {}

    FASTMLP_INLINE void operator()(Reg<T>& p, Reg<T> g, Reg<T>* states) const {
      auto [m, s] = averages.next(p, g, states);
      if (rectified) m = V::div(m, V::add(V::sqrt(s), eps));
      p = V::fma(m, rate, p);
    }
  };
};
