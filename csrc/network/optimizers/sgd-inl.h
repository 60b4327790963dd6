// torch.optim.SGD: Sutskever et al. 2013. The order of operations is that of torch's single-tensor
// function.
struct SGD {
  enum Option { kLr, kMomentum, kDampening, kWeightDecay, kNesterov };
  enum State { kBuffer };

  static bool has_momentum(const double* o) { return o[kMomentum] != 0; }
  static bool is_plain(const double* o) { return o[kMomentum] == 0 && o[kWeightDecay] == 0; }
  static double rate(const Update& u) { return -u.options[kLr]; }
  static void advance(Update&) {}

  static constexpr OptimizerInfo info{
      "SGD",
      {{"lr"}, {"momentum"}, {"dampening"}, {"weight_decay"}, {"nesterov", OptionInfo::flag}},
      {{"momentum_buffer", has_momentum, 0, true}},
      {},
      advance,
      is_plain,
      rate};

  template <typename T>
  struct Rule {
    using V = Vec<T>;
    const WeightDecay<T> decay;
    const bool has_buffer, fresh, nesterov;
    const Reg<T> factor, rest, rate;

    FASTMLP_INLINE explicit Rule(const Update& u)
        : decay(u.options[kWeightDecay]),
          has_buffer(u.states[kBuffer]),
          fresh(u.fresh),
          nesterov(u.options[kNesterov] != 0),
          factor(V::set1(T(u.options[kMomentum]))),
          rest(V::set1(T(1 - u.options[kDampening]))),
          rate(V::set1(T(-u.options[kLr]))) {}

    FASTMLP_INLINE void operator()(Reg<T>& p, Reg<T> g, Reg<T>* states) const {
      decay(p, g);
      if (has_buffer) {
        auto b = g;
        if (!fresh) b = V::fma(states[kBuffer], factor, V::mul(g, rest));
        b = without_subnormals<T>(b);
        states[kBuffer] = b;
        g = nesterov ? V::fma(b, factor, g) : b;
      }
      p = V::fma(g, rate, p);
    }
  };
};
