// torch.nn.PoissonNLLLoss. Included inside a target region, after elementwise-inl.h.
//
// e^z - t·z, or without log_input z - t·log(z + eps); where it is full and t > 1, with Stirling's
// t·log(t) - t + log(2πt)/2 for log(t!).
struct PoissonNLLLoss {
  enum Option { kLogInput, kFull, kEps };
  static constexpr LossInfo info{
      "PoissonNLLLoss",
      Target::counts,
      {},
      {{"log_input", OptionInfo::flag}, {"full", OptionInfo::flag}, {"eps"}},
      false,
      prepare_elementwise};

  template <typename T>
  struct Element {
    using V = Vec<T>;
    const bool has_log_input, is_full;
    const Reg<T> eps, scale;

    FASTMLP_INLINE explicit Element(const Loss& loss)
        : has_log_input(loss.options[kLogInput] != 0),
          is_full(loss.options[kFull] != 0),
          eps(V::set1(static_cast<T>(loss.options[kEps]))),
          scale(gradient_scale<T>(loss)) {}
    FASTMLP_INLINE void operator()(Reg<T> z, Reg<T> t, const Reg<T>*, Reg<T>& value,
                                   Reg<T>& gradient) const {
      const auto one = V::set1(T(1));
      if (has_log_input) {
        // The maximum keeps the exponential's last product, which may overflow, out of the
        // difference: contracted with that, it would be finite.
        const auto rate = V::max(V::zero(), exp<T>(z));
        value = V::sub(rate, V::mul(t, z));
        gradient = V::mul(V::sub(rate, t), scale);
      } else {
        const auto rate = V::add(z, eps);
        value = V::sub(z, V::mul(t, log<T>(rate)));
        gradient = V::mul(V::sub(one, V::div(t, rate)), scale);
      }
      if (is_full) {
        const auto circle = V::mul(V::set1(T(6.28318530717958647692)), t);
        const auto factorial =
            V::add(V::sub(V::mul(t, log<T>(t)), t), V::mul(V::set1(T(0.5)), log<T>(circle)));
        const auto is_small = V::is_not_positive(V::sub(t, one));
        value = V::add(value, V::select(is_small, V::zero(), factorial));
      }
    }
  };
};
