// torch.nn.CrossEntropyLoss, of classes and of probabilities. Included inside a target region,
// after classes-inl.h.

// The softmax of a vector of rows, one in each lane: of few classes most lanes of a row would be
// idle, and maximum and sum across them as long as the exponentials (10 % of a training step of
// 4-32-16-4 at batch 10,000, of which 4 % are left).
constexpr int64_t kFewClasses = 64;

template <typename T>
FASTMLP_INLINE void softmax_of_lanes(int64_t n, const T* z, T* p, T* maximum, T* sum) {
  using V = Vec<T>;
  constexpr int w = V::width;
  T columns[kFewClasses * w];
  pack_transposed<T>(w, n, z, n, columns, w, w);
  auto most = V::load(columns);
  for (int64_t j = 1; j < n; ++j) most = V::max(V::load(columns + j * w), most);
  auto sums = V::zero();
  for (int64_t j = 0; j < n; ++j) {
    const auto e = exp<T>(V::sub(V::load(columns + j * w), most));
    V::store(columns + j * w, e);
    sums = V::add(sums, e);
  }
  const auto scale = V::div(V::set1(T(1)), sums);
  for (int64_t j = 0; j < n; ++j)
    V::store(columns + j * w, V::mul(V::load(columns + j * w), scale));
  pack_transposed<T>(n, w, columns, w, p, n, n);
  V::store(maximum, most);
  V::store(sum, sums);
}

// p = softmax(z) for each row: exp(z - maximum) / sum, with both factors kept for the logarithm.
// NaN and infinity give NaN, as in torch. n is at least 1.
template <typename T>
void softmax(int64_t rows, int64_t n, const T* z, T* p, T* maximum, T* sum) {
  using V = Vec<T>;
  int64_t i = 0;
  for (; n <= kFewClasses && i + V::width <= rows; i += V::width)
    softmax_of_lanes<T>(n, z + i * n, p + i * n, maximum + i, sum + i);
  T lanes[V::width];
  for (z += i * n, p += i * n; i < rows; ++i, z += n, p += n) {
    T greatest = z[0];
    if (n < V::width) {
      for (int64_t j = 1; j < n; ++j) greatest = z[j] > greatest ? z[j] : greatest;
    } else {
      auto most = V::load(z + n - V::width);  // the last ones, of which some come twice
      for (int64_t j = 0; j + V::width <= n; j += V::width) most = V::max(V::load(z + j), most);
      V::store(lanes, most);
      greatest = lanes[0];
      for (int l = 1; l < V::width; ++l) greatest = lanes[l] > greatest ? lanes[l] : greatest;
    }
    const auto shift = V::set1(greatest);
    auto sums = V::zero();
    for (int64_t j = 0; j < n; j += V::width) {
      const auto mask = V::first(n - j < V::width ? n - j : V::width);
      const auto e = exp<T>(V::sub(V::load(z + j, mask), shift));
      V::store(p + j, e, mask);
      if (j + V::width <= n) sums = V::add(sums, e);
    }
    V::store(lanes, sums);
    T total = lanes[0];
    for (int l = 1; l < V::width; ++l) total += lanes[l];
    for (int64_t j = n / V::width * V::width; j < n; ++j) total += p[j];
    const T scale = T(1) / total;
    for (int64_t j = 0; j < n; ++j) p[j] *= scale;
    maximum[i] = greatest;
    sum[i] = total;
  }
}

inline void prepare_rows(Loss& loss) {
  if (loss.reduction == Reduction::mean) loss.denominator = static_cast<double>(loss.batch);
}

// What both have: label smoothing s, with which a class counts `keep` = 1 - s of itself and
// `smooth` = s / n of each.
struct SoftmaxLoss {
  enum Option { kLabelSmoothing };
  static constexpr int64_t kRows = 64;

  static std::string fault(const Loss& loss) {
    const double smoothing = loss.options[kLabelSmoothing];
    if (smoothing >= 0 && smoothing <= 1) return {};
    return "label_smoothing must be between 0.0 and 1.0. Got: " + std::to_string(smoothing);
  }

  // row(i, maximum, sum, level) for each row, when its gradient holds its softmax, of its greatest
  // element and the sum of the exponentials of the differences from it: level - z[j] is -log p of
  // class j.
  template <typename T, typename Row>
  static FASTMLP_INLINE void each_row(const Loss& loss, int64_t begin, int64_t end,
                                      const Row& row) {
    const int64_t n = loss.features;
    T maximum[kRows], sum[kRows];
    softmax<T>(end - begin, n, static_cast<const T*>(loss.prediction) + begin * n,
               static_cast<T*>(loss.gradient) + begin * n, maximum, sum);
    for (int64_t i = begin; i < end; ++i) {
      const T most = maximum[i - begin], total = sum[i - begin];
      row(i, most, total, static_cast<double>(most) + std::log(static_cast<double>(total)));
    }
  }
};

struct CrossEntropyLoss : SoftmaxLoss {
  static double of_no_classes(const Loss& loss) {  // torch divides nothing by their number
    return loss.options[kLabelSmoothing] > 0 ? std::numeric_limits<double>::quiet_NaN()
                                             : sum_over_nothing(loss);
  }

  static constexpr LossInfo info{"CrossEntropyLoss",
                                 Target::classes,
                                 {{"weight", LossOperandInfo::per_class}},
                                 {{"label_smoothing"}},
                                 true,
                                 prepare_classes,
                                 fault,
                                 of_no_classes};

  template <typename T>
  static LossResult rows(const Loss& loss, int64_t begin, int64_t end) {
    const int64_t n = loss.features;
    const double smoothing = loss.options[kLabelSmoothing];
    const double smooth = smoothing / static_cast<double>(n), keep = 1 - smoothing;
    LossResult result;
    each_row<T>(loss, begin, end, [&](int64_t i, T maximum, T sum, double level) FASTMLP_INLINED {
      const T* const z = static_cast<const T*>(loss.prediction) + i * n;
      T* const gradient = static_cast<T*>(loss.gradient) + i * n;
      const int64_t label = loss.classes[i];
      if (label == loss.ignore_index) {
        for (int64_t j = 0; j < n; ++j) gradient[j] *= T(0);  // NaN stays, as in torch
        return;
      }
      // Most wrong predictions are seen without looking at all of z. A NaN makes the sum one.
      const bool possible = z[label] == maximum || std::isnan(sum);
      result.correct += possible && argmax(n, z) == label;
      const double own = keep * class_weight<T>(loss, label);
      double total = own * (level - z[label]);
      const double all = own + smooth * loss.class_weights;
      if (smooth == 0) {
        const T scale = static_cast<T>(all / loss.denominator);
        for (int64_t j = 0; j < n; ++j) gradient[j] *= scale;
      } else {
        for (int64_t j = 0; j < n; ++j) {
          const double share = smooth * class_weight<T>(loss, j);
          total += share * (level - z[j]);
          gradient[j] = static_cast<T>((gradient[j] * all - share) / loss.denominator);
        }
      }
      gradient[label] -= static_cast<T>(own / loss.denominator);
      result.loss += total;
    });
    return result;
  }
};

struct CrossEntropyLossOfProbabilities : SoftmaxLoss {
  static std::string fault(const Loss& loss) {
    if (loss.ignore_index >= 0) return "ignore_index is not supported for floating point target";
    return SoftmaxLoss::fault(loss);
  }
  static constexpr LossInfo info{"CrossEntropyLoss",
                                 Target::like_output,
                                 {{"weight", LossOperandInfo::per_class}},
                                 {{"label_smoothing"}},
                                 true,
                                 prepare_rows,
                                 fault,
                                 sum_over_nothing};

  template <typename T>
  static LossResult rows(const Loss& loss, int64_t begin, int64_t end) {
    const int64_t n = loss.features;
    const double smoothing = loss.options[kLabelSmoothing];
    const double smooth = smoothing / static_cast<double>(n), keep = 1 - smoothing;
    LossResult result;
    each_row<T>(loss, begin, end, [&](int64_t i, T, T, double level) FASTMLP_INLINED {
      const T* const z = static_cast<const T*>(loss.prediction) + i * n;
      const T* const target = static_cast<const T*>(loss.target) + i * n;
      T* const gradient = static_cast<T*>(loss.gradient) + i * n;
      const auto share = [&](int64_t j) {
        return class_weight<T>(loss, j) * (keep * target[j] + smooth);
      };
      double all = 0, total = 0;
      for (int64_t j = 0; j < n; ++j) {
        all += share(j);
        total += share(j) * (level - z[j]);
      }
      for (int64_t j = 0; j < n; ++j) {
        gradient[j] = static_cast<T>((gradient[j] * all - share(j)) / loss.denominator);
      }
      result.loss += total;
    });
    return result;
  }
};
