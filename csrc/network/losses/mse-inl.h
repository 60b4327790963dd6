// torch.nn.MSELoss. Included inside a target region, after elementwise-inl.h.
struct MSELoss {
  static constexpr LossInfo info{"MSELoss", Target::like_output, {}, {},
                                 false,     prepare_elementwise};

  template <typename T>
  struct Element {
    using V = Vec<T>;
    // Twice a difference may be infinite where its mean is not.
    const Reg<T> twice;

    FASTMLP_INLINE explicit Element(const Loss& loss)
        : twice(V::set1(2 * static_cast<T>(1 / loss.denominator))) {}
    FASTMLP_INLINE void operator()(Reg<T> z, Reg<T> t, const Reg<T>*, Reg<T>& value,
                                   Reg<T>& gradient) const {
      const auto difference = V::sub(z, t);
      value = V::mul(difference, difference);
      gradient = V::mul(difference, twice);
    }
  };
};
