// torch.nn.L1Loss. Included inside a target region, after elementwise-inl.h.
struct L1Loss {
  static constexpr LossInfo info{"L1Loss", Target::like_output, {}, {}, false, prepare_elementwise};

  template <typename T>
  struct Element {
    using V = Vec<T>;
    const Reg<T> scale;

    FASTMLP_INLINE explicit Element(const Loss& loss) : scale(gradient_scale<T>(loss)) {}
    FASTMLP_INLINE void operator()(Reg<T> z, Reg<T> t, const Reg<T>*, Reg<T>& value,
                                   Reg<T>& gradient) const {
      const auto difference = V::sub(z, t);
      value = V::abs(difference);
      gradient = V::mul(sign<T>(difference, V::zero()), scale);
    }
  };
};
