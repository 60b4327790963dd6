// torch.optim.Adagrad: Duchi et al. 2011.
struct Adagrad {
  enum Option { kLr, kLrDecay, kEps, kWeightDecay };
  enum State { kSum };
  enum Number { kRate };

  static void advance(Update& u) {
    const double before = u.count_step() - 1;
    u.numbers[kRate] = -u.options[kLr] / (1 + before * u.options[kLrDecay]);
  }

  static constexpr OptimizerInfo info{"Adagrad",
                                      {{"lr"}, {"lr_decay"}, {"eps"}, {"weight_decay"}},
                                      {{"sum", nullptr, 0, false, "initial_accumulator_value"}},
                                      {{"step"}},
                                      advance};

  template <typename T>
  struct Rule {
    using V = Vec<T>;
    const WeightDecay<T> decay;
    const Reg<T> eps, rate;

    FASTMLP_INLINE explicit Rule(const Update& u)
        : decay(u.options[kWeightDecay]),
          eps(V::set1(T(u.options[kEps]))),
          rate(V::set1(T(u.numbers[kRate]))) {}

    FASTMLP_INLINE void operator()(Reg<T>& p, Reg<T> g, Reg<T>* states) const {
      decay(p, g);
      const auto sum = states[kSum] = V::fma(g, g, states[kSum]);
      p = V::fma(V::div(g, V::add(V::sqrt(sum), eps)), rate, p);
    }
  };
};
