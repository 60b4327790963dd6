// torch.nn.SmoothL1Loss (Girshick 2015). Included inside a target region, after elementwise-inl.h.
//
// d²/2β where |d| < β, else |d| - β/2; with β = 0, L1Loss.
struct SmoothL1Loss {
  enum Option { kBeta };
  static std::string fault(const Loss& loss) {
    if (loss.options[kBeta] >= 0) return {};
    return "smooth_l1_loss does not support negative values for beta.";
  }

  static constexpr LossInfo info{"SmoothL1Loss", Target::like_output, {},   {{"beta"}},
                                 false,          prepare_elementwise, fault};

  template <typename T>
  struct Element {
    using V = Vec<T>;
    const bool is_l1;
    const Reg<T> beta, scale;

    FASTMLP_INLINE explicit Element(const Loss& loss)
        : is_l1(loss.options[kBeta] == 0),
          beta(V::set1(static_cast<T>(loss.options[kBeta]))),
          scale(gradient_scale<T>(loss)) {}
    FASTMLP_INLINE void operator()(Reg<T> z, Reg<T> t, const Reg<T>*, Reg<T>& value,
                                   Reg<T>& gradient) const {
      const auto half = V::set1(T(0.5));
      const auto difference = V::sub(z, t), size = V::abs(difference);
      const auto is_near = V::is_positive(V::sub(beta, size));
      value = V::select(is_near, V::div(V::mul(V::mul(half, size), size), beta),
                        V::sub(size, V::mul(half, beta)));
      const auto far = sign<T>(difference, is_l1 ? V::zero() : difference);
      gradient = V::mul(V::select(is_near, V::div(difference, beta), far), scale);
    }
  };
};
