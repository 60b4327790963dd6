// torch.optim.RAdam: Liu et al. 2020.
struct RAdam {
  enum Option { kLr, kBeta1, kBeta2, kEps, kWeightDecay, kDecoupled };
  enum State { kMean, kSquare };
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
    const WeightDecay<T> decay;
    const Average<T> mean, square;
    const bool rectified;
    const Reg<T> eps, rate;

    FASTMLP_INLINE explicit Rule(const Update& u)
        : decay(u.options[kWeightDecay], u.options[kDecoupled] != 0, u.options[kLr]),
          mean(u.options[kBeta1], hides_subnormals(u.options[kEps])),
          square(u.options[kBeta2], hides_subnormals(u.options[kEps])),
          rectified(u.numbers[kRectified] != 0),
          eps(V::set1(T(u.options[kEps]))),
          rate(V::set1(T(u.numbers[kRate]))) {}

    FASTMLP_INLINE void operator()(Reg<T>& p, Reg<T> g, Reg<T>* states) const {
      decay(p, g);
      auto m = states[kMean] = mean.of(states[kMean], g);
      const auto s = states[kSquare] = square.of_squares(states[kSquare], g);
      if (rectified) m = V::div(m, V::add(V::sqrt(s), eps));
      p = V::fma(m, rate, p);
    }
  };
};
