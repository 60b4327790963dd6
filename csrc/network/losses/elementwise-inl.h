// What the losses of each element alone share. Such a loss has an Element(loss), which is called
// with (z, t, operands, value, gradient) and divides the gradient by the denominator. Included
// inside a target region, after math-inl.h.

inline void prepare_elementwise(Loss& loss) {
  switch (loss.reduction) {
    case Reduction::mean:
      loss.denominator = loss.elements();
      break;
    case Reduction::batchmean:
      loss.denominator = static_cast<double>(loss.samples);
      break;
    case Reduction::sum:
      loss.denominator = 1;
  }
}

// What an element's slope is multiplied by.
template <typename T>
FASTMLP_INLINE Reg<T> gradient_scale(const Loss& loss) {
  return Vec<T>::set1(static_cast<T>(1 / loss.denominator));
}

// -1 or 1 by the sign of d; where it is 0 or NaN, `otherwise`.
template <typename T>
FASTMLP_INLINE Reg<T> sign(Reg<T> d, Reg<T> otherwise) {
  using V = Vec<T>;
  const auto one = V::set1(T(1)), minus = V::sub(V::zero(), d);
  const auto rest = V::select(V::is_positive(minus), V::set1(T(-1)), otherwise);
  return V::select(V::is_positive(d), one, rest);
}
