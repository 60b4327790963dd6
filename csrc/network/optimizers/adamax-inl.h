// torch.optim.Adamax: Kingma and Ba 2015, section 7.1.
struct Adamax {
  enum Option { kLr, kBeta1, kBeta2, kEps, kWeightDecay };
  enum State { kMean, kGreatest };
  enum Number { kRate };

  static void advance(Update& u) {
    u.numbers[kRate] = -u.options[kLr] / (1 - std::pow(u.options[kBeta1], u.count_step()));
  }

  static constexpr OptimizerInfo info{
      "Adamax",
      {{"lr"}, {"betas", OptionInfo::pair}, {"eps"}, {"weight_decay"}},
      {{"exp_avg"}, {"exp_inf"}},
      {{"step"}},
      advance};

  template <typename T>
  struct Rule {
    using V = Vec<T>;
    const WeightDecay<T> decay;
    const Average<T> mean;
    const Reg<T> beta2, eps, rate;

    FASTMLP_INLINE explicit Rule(const Update& u)
        : decay(u.options[kWeightDecay]),
          mean(u.options[kBeta1], hides_subnormals(u.options[kEps])),
          beta2(V::set1(T(u.options[kBeta2]))),
          eps(V::set1(T(u.options[kEps]))),
          rate(V::set1(T(u.numbers[kRate]))) {}

    FASTMLP_INLINE void operator()(Reg<T>& p, Reg<T> g, Reg<T>* states) const {
      decay(p, g);
      const auto m = states[kMean] = mean.of(states[kMean], g);
      const auto greatest = states[kGreatest] =
          maximum<T>(V::mul(states[kGreatest], beta2), V::add(V::abs(g), eps));
      p = V::fma(V::div(m, greatest), rate, p);
    }
  };
};
