// torch.nn.HuberLoss (Huber 1964). Included inside a target region, after elementwise-inl.h.
//
// d²/2 where |d| < δ, else δ·(|d| - δ/2).
struct HuberLoss {
  enum Option { kDelta };
  static std::string fault(const Loss& loss) {
    if (loss.options[kDelta] > 0) return {};
    return "huber_loss does not support non-positive values for delta.";
  }

  static constexpr LossInfo info{"HuberLoss", Target::like_output, {},   {{"delta"}},
                                 false,       prepare_elementwise, fault};

  template <typename T>
  struct Element {
    using V = Vec<T>;
    const Reg<T> delta, scale;

    FASTMLP_INLINE explicit Element(const Loss& loss)
        : delta(V::set1(static_cast<T>(loss.options[kDelta]))), scale(gradient_scale<T>(loss)) {}
    FASTMLP_INLINE void operator()(Reg<T> z, Reg<T> t, const Reg<T>*, Reg<T>& value,
                                   Reg<T>& gradient) const {
      const auto half = V::set1(T(0.5));
      const auto difference = V::sub(z, t), size = V::abs(difference);
      const auto is_near = V::is_positive(V::sub(delta, size));
      value = V::select(is_near, V::mul(V::mul(half, size), size),
                        V::mul(delta, V::sub(size, V::mul(half, delta))));
      const auto far = V::mul(delta, sign<T>(difference, difference));
      gradient = V::mul(V::select(is_near, difference, far), scale);
    }
  };
};
