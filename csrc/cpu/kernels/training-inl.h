// Losses and optimizers over matrices. Included inside a target region, after losses-inl.h and
// optimizers-inl.h.

template <typename Loss>
struct HasElement {
  template <typename L>
  static std::true_type test(typename L::template Element<float>*);
  template <typename L>
  static std::false_type test(...);
  static constexpr bool value = decltype(test<Loss>(nullptr))::value;
};

// A loss's rows begin … end - 1, of which there are 64 at most.
template <typename T, typename Kind>
LossResult loss_rows(const Loss& loss, int64_t begin, int64_t end) {
  if constexpr (!HasElement<Kind>::value) {
    return Kind::template rows<T>(loss, begin, end);
  } else {
    using V = Vec<T>;
    const typename Kind::template Element<T> element(loss);
    const auto at = [&](const void* pointer) {
      return pointer ? static_cast<const T*>(pointer) + begin * loss.features : nullptr;
    };
    const T *const prediction = at(loss.prediction), *const target = at(loss.target);
    T* const gradients = static_cast<T*>(loss.gradient) + begin * loss.features;
    const T* operands[kMostLossOperands];
    for (int i = 0; i < kMostLossOperands; ++i) operands[i] = at(loss.operands[i]);
    const int64_t n = (end - begin) * loss.features;
    // A few vectors are added up as they are, and their sums as double.
    constexpr int64_t kShort = 4 * V::width;
    double total = 0;
    for (int64_t first = 0; first < n; first += kShort) {
      auto sum = V::zero();
      for (int64_t i = first; i < n && i < first + kShort; i += V::width) {
        const auto mask = V::first(n - i < V::width ? n - i : V::width);
        Reg<T> others[kMostLossOperands], value, gradient;
        for (int o = 0; o < kMostLossOperands; ++o)
          others[o] = operands[o] ? V::load(operands[o] + i, mask) : V::zero();
        element(V::load(prediction + i, mask), V::load(target + i, mask), others, value, gradient);
        V::store(gradients + i, gradient, mask);
        if (n - i < V::width) {
          // What lies beyond the end counts nothing, whatever the formula makes of zeros there.
          T lanes[V::width] = {};
          V::store(lanes, value, mask);
          value = V::load(lanes);
        }
        sum = V::add(sum, value);
      }
      T lanes[V::width];
      V::store(lanes, sum);
      for (int l = 0; l < V::width; ++l) total += static_cast<double>(lanes[l]);
    }
    return {total, 0};
  }
}

// The update of [rows, n] of one parameter from element `begin` on, all rows a stride apart. The
// gradient is multiplied by `scale` first: of its clipping.
template <typename T, typename Optimizer>
void update(int64_t rows, int64_t n, int64_t stride, int64_t begin, const Update& u, double scale) {
  using V = Vec<T>;
  using Rule = typename Optimizer::template Rule<T>;
  const auto scales = V::set1(static_cast<T>(u.maximize ? -scale : scale));
  T* const parameter = static_cast<T*>(u.parameter) + begin;
  const T* const gradient = static_cast<const T*>(u.gradient) + begin;
  T* states[kMostStates];
  for (int s = 0; s < kMostStates; ++s)
    states[s] = u.states[s] ? static_cast<T*>(u.states[s]) + begin : nullptr;
  // known: how many of the states are known to be there, and no other is; 0: nothing is known.
  const auto run = [&](const Rule& rule, auto known) FASTMLP_INLINED {
    constexpr int most = known.value > 0 ? known.value : kMostStates;
    const auto one = [&](int64_t i, auto... mask) FASTMLP_INLINED {
      Reg<T> kept[kMostStates];
      FASTMLP_UNROLL
      for (int s = 0; s < most; ++s)
        kept[s] = known.value > 0 || states[s] ? V::load(states[s] + i, mask...) : V::zero();
      auto p = V::load(parameter + i, mask...);
      rule(p, V::mul(V::load(gradient + i, mask...), scales), kept);
      FASTMLP_UNROLL
      for (int s = 0; s < most; ++s) {
        if (known.value > 0 || states[s]) V::store(states[s] + i, kept[s], mask...);
      }
      V::store(parameter + i, p, mask...);
    };
    for (int64_t row = 0; row < rows; ++row) {
      int64_t j = 0;
      if constexpr (known.value > 0) {
        for (; j + V::width <= n; j += V::width) one(row * stride + j);
      }
      for (; j < n; j += V::width)
        one(row * stride + j, V::first(n - j < V::width ? n - j : V::width));
    }
  };
  if constexpr (std::is_constructible<Rule, const Update&, bool>::value) {
    if (Rule::is_usual(u))
      return run(Rule(u, true), std::integral_constant<int, Rule::kUsualStates>());
  }
  run(Rule(u), std::integral_constant<int, 0>());
}
