// torch.nn.NLLLoss, of logarithms of probabilities. Included inside a target region, after
// classes-inl.h.
struct NLLLoss {
  static constexpr LossInfo info{"NLLLoss",
                                 Target::classes,
                                 {{"weight", LossOperandInfo::per_class}},
                                 {},
                                 true,
                                 prepare_classes,
                                 nullptr,
                                 sum_over_nothing};

  template <typename T>
  static LossResult rows(const Loss& loss, int64_t begin, int64_t end) {
    const int64_t n = loss.features;
    LossResult result;
    for (int64_t i = begin; i < end; ++i) {
      T* const gradient = static_cast<T*>(loss.gradient) + i * n;
      for (int64_t j = 0; j < n; ++j) gradient[j] = T(0);
      const int64_t label = loss.classes[i];
      if (label == loss.ignore_index) continue;
      const T* const z = static_cast<const T*>(loss.prediction) + i * n;
      const double weight = class_weight<T>(loss, label);
      result.loss -= weight * z[label];
      result.correct += argmax(n, z) == label;
      gradient[label] = static_cast<T>(-weight / loss.denominator);
    }
    return result;
  }
};
