// What the losses of classes share. Included inside a target region, after math-inl.h.

// torch's argmax: the first of the greatest, NaN above all.
template <typename T>
int64_t argmax(int64_t n, const T* z) {
  int64_t best = 0;
  for (int64_t j = 1; j < n; ++j) {
    if (z[j] > z[best] || (std::isnan(z[j]) && !std::isnan(z[best]))) best = j;
  }
  return best;
}

// A class's weight; 1 where there are none.
template <typename T>
FASTMLP_INLINE double class_weight(const Loss& loss, int64_t j) {
  const T* const weights = static_cast<const T*>(loss.operands[0]);
  return weights ? static_cast<double>(weights[j]) : 1.0;
}

// The mean is over the weights of the rows' classes.
inline void prepare_classes(Loss& loss) {
  dispatch(loss.dtype, [&](auto zero) {
    const auto weight = [&](int64_t j) { return class_weight<decltype(zero)>(loss, j); };
    for (int64_t j = 0; j < loss.features; ++j) loss.class_weights += weight(j);
    if (loss.reduction != Reduction::mean) return;
    loss.denominator = 0;
    if (loss.operands[0]) {
      for (int64_t i = 0; i < loss.batch; ++i) {
        if (loss.classes[i] != loss.ignore_index) loss.denominator += weight(loss.classes[i]);
      }
    } else {
      int64_t rows = 0;
      for (int64_t i = 0; i < loss.batch; ++i) rows += loss.classes[i] != loss.ignore_index;
      loss.denominator = static_cast<double>(rows);
    }
  });
}

// What is left of a loss where there are no classes: the quotient of a mean is 0 / 0.
inline double sum_over_nothing(const Loss& loss) {
  return loss.reduction == Reduction::mean ? std::numeric_limits<double>::quiet_NaN() : 0;
}
