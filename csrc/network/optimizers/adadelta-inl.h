// torch.optim.Adadelta: Zeiler 2012.
struct Adadelta {
  enum Option { kLr, kRho, kEps, kWeightDecay };
  enum State { kSquare, kSquareDelta };

  static void advance(Update& u) { u.count_step(); }

  static constexpr OptimizerInfo info{"Adadelta",
                                      {{"lr"}, {"rho"}, {"eps"}, {"weight_decay"}},
                                      {{"square_avg"}, {"acc_delta"}},
                                      {{"step"}},
                                      advance};

  template <typename T>
  struct Rule {
    using V = Vec<T>;
    const WeightDecay<T> decay;
    const Average<T> average;
    const Reg<T> eps, rate;

    FASTMLP_INLINE explicit Rule(const Update& u)
        : decay(u.options[kWeightDecay]),
          average(u.options[kRho], hides_subnormals(u.options[kEps])),
          eps(V::set1(T(u.options[kEps]))),
          rate(V::set1(T(-u.options[kLr]))) {}

    FASTMLP_INLINE void operator()(Reg<T>& p, Reg<T> g, Reg<T>* states) const {
      decay(p, g);
      const auto s = states[kSquare] = average.of_squares(states[kSquare], g);
      // Two roots: their quotient is there where that of the squares is too small or too great.
      const auto root = V::sqrt(V::add(states[kSquareDelta], eps));
      const auto delta = V::mul(g, V::div(root, V::sqrt(V::add(s, eps))));
      states[kSquareDelta] = average.of_squares(states[kSquareDelta], delta);
      p = V::fma(delta, rate, p);
    }
  };
};
