// torch.nn.BCEWithLogitsLoss. Included inside a target region, after elementwise-inl.h.
//
// (1 - t)·z + l·log(1 + exp(-z)) with l = 1 + (pos_weight - 1)·t, without overflow.
struct BCEWithLogitsLoss {
  static constexpr LossInfo info{
      "BCEWithLogitsLoss", Target::like_output, {{"weight"}, {"pos_weight"}}, {}, false,
      prepare_elementwise};

  template <typename T>
  struct Element {
    using V = Vec<T>;
    const bool has_weight, has_positive_weight;
    const Reg<T> scale;

    FASTMLP_INLINE explicit Element(const Loss& loss)
        : has_weight(loss.operands[0]),
          has_positive_weight(loss.operands[1]),
          scale(gradient_scale<T>(loss)) {}
    FASTMLP_INLINE void operator()(Reg<T> z, Reg<T> t, const Reg<T>* operands, Reg<T>& value,
                                   Reg<T>& gradient) const {
      const auto zero = V::zero(), one = V::set1(T(1)), rest = V::sub(one, t);
      auto l = one;
      if (has_positive_weight) l = V::fma(V::sub(operands[1], one), t, one);
      const auto e = exp<T>(V::sub(zero, V::abs(z)));
      const auto sigmoid_of_minus = V::div(V::select(V::is_positive(z), e, one), V::add(one, e));
      value = V::fma(l, softplus<T>(V::sub(zero, z), e), V::mul(rest, z));
      auto slope = V::sub(rest, V::mul(l, sigmoid_of_minus));
      if (has_weight) {
        value = V::mul(operands[0], value);
        slope = V::mul(operands[0], slope);
      }
      gradient = V::mul(slope, scale);
    }
  };
};
