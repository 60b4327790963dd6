// torch.nn.KLDivLoss (Kullback and Leibler 1951), of logarithms of probabilities. Included inside
// a target region, after elementwise-inl.h.
//
// t·log(t) - t·z, or with s = log(t) as its target e^s·(s - z). 0·log(0) is 0.
struct KLDivLoss {
  enum Option { kLogTarget };
  static constexpr LossInfo info{
      "KLDivLoss", Target::like_output, {},      {{"log_target", OptionInfo::flag}},
      false,       prepare_elementwise, nullptr, nullptr,
      true};

  template <typename T>
  struct Element {
    using V = Vec<T>;
    const bool has_log_target;
    const Reg<T> minus_scale;

    FASTMLP_INLINE explicit Element(const Loss& loss)
        : has_log_target(loss.options[kLogTarget] != 0),
          minus_scale(V::set1(static_cast<T>(-1 / loss.denominator))) {}
    FASTMLP_INLINE void operator()(Reg<T> z, Reg<T> t, const Reg<T>*, Reg<T>& value,
                                   Reg<T>& gradient) const {
      auto p = t;
      if (has_log_target) {
        p = exp<T>(t);
        value = V::mul(p, V::sub(t, z));
      } else {
        const auto is_zero = V::is_not_positive(V::abs(t));
        const auto entropy = V::select(is_zero, V::zero(), V::mul(t, log<T>(t)));
        value = V::sub(entropy, V::mul(t, z));
      }
      gradient = V::mul(p, minus_scale);
    }
  };
};
