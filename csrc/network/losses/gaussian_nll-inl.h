// torch.nn.GaussianNLLLoss (Nix and Weigend 1994). Included inside a target region, after
// elementwise-inl.h.
//
// (log(v) + (z - t)²/v) / 2 with v no smaller than eps, and where it is full log(2π)/2.
struct GaussianNLLLoss {
  enum Option { kFull, kEps };
  static constexpr LossInfo info{"GaussianNLLLoss",
                                 Target::like_output,
                                 {{"var", LossOperandInfo::variance}},
                                 {{"full", OptionInfo::flag}, {"eps"}},
                                 false,
                                 prepare_elementwise};

  template <typename T>
  struct Element {
    using V = Vec<T>;
    const Reg<T> eps, constant, scale;

    FASTMLP_INLINE explicit Element(const Loss& loss)
        : eps(V::set1(static_cast<T>(loss.options[kEps]))),
          constant(V::set1(loss.options[kFull] != 0 ? T(0.91893853320467274178) : T(0))),
          scale(gradient_scale<T>(loss)) {}
    FASTMLP_INLINE void operator()(Reg<T> z, Reg<T> t, const Reg<T>* operands, Reg<T>& value,
                                   Reg<T>& gradient) const {
      const auto variance = V::max(eps, operands[0]);  // NaN stays
      const auto difference = V::sub(z, t);
      const auto square = V::div(V::mul(difference, difference), variance);
      value = V::fma(V::set1(T(0.5)), V::add(log<T>(variance), square), constant);
      gradient = V::mul(V::div(difference, variance), scale);
    }
  };
};
