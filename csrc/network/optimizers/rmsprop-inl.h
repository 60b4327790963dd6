// torch.optim.RMSprop: Tieleman and Hinton 2012; centered: Graves 2013.
struct RMSprop {
  enum Option { kLr, kAlpha, kEps, kWeightDecay, kMomentum, kCentered };
  enum State { kSquare, kBuffer, kMean };

  static bool has_momentum(const double* o) { return o[kMomentum] > 0; }
  static bool is_centered(const double* o) { return o[kCentered] != 0; }
  static void advance(Update& u) { u.count_step(); }

  static constexpr OptimizerInfo info{
      "RMSprop",
      {{"lr"}, {"alpha"}, {"eps"}, {"weight_decay"}, {"momentum"}, {"centered", OptionInfo::flag}},
      {{"square_avg"}, {"momentum_buffer", has_momentum}, {"grad_avg", is_centered}},
      {{"step"}},
      advance};

  template <typename T>
  struct Rule {
    using V = Vec<T>;
    const WeightDecay<T> decay;
    const Average<T> average;
    const bool has_buffer, centered;
    const Reg<T> eps, factor, rate;

    FASTMLP_INLINE explicit Rule(const Update& u)
        : decay(u.options[kWeightDecay]),
          average(u.options[kAlpha], hides_subnormals(u.options[kEps])),
          has_buffer(u.states[kBuffer]),
          centered(u.states[kMean]),
          eps(V::set1(T(u.options[kEps]))),
          factor(V::set1(T(u.options[kMomentum]))),
          rate(V::set1(T(-u.options[kLr]))) {}

    FASTMLP_INLINE void operator()(Reg<T>& p, Reg<T> g, Reg<T>* states) const {
      decay(p, g);
      auto s = states[kSquare] = average.of_squares(states[kSquare], g);
      if (centered) {
        const auto m = states[kMean] = average.of(states[kMean], g);
        // Rounding alone makes the variance negative. NaN goes through.
        s = V::max(V::zero(), V::sub(s, V::mul(m, m)));
      }
      g = V::div(g, V::add(V::sqrt(s), eps));
      if (has_buffer) {
        g = without_subnormals<T>(V::fma(states[kBuffer], factor, g));
        states[kBuffer] = g;
      }
      p = V::fma(g, rate, p);
    }
  };
};
