// Activations, and what follows them, over matrices. Included inside a target region, after
// activations-inl.h.

// Walks [rows, n] by vectors: to each (row, column), `store` is given what `load` has made of it.
// Both are given the mask of the elements that are there, unless it is known that all are: masked
// loads wait for the stores of whole vectors that a tile has just made. Some rows are loaded before
// the first of them is stored: a masked store and a masked load of the neighbouring row look to the
// processor as if they overlapped, and the load waits (33 of 90 µs for a layer 8-8 at batch 4096).
constexpr int kRowsAtOnce = 4;

template <typename T, typename Load, typename Store>
FASTMLP_INLINE void by_vectors(int64_t rows, int64_t n, const Load& load, const Store& store) {
  using V = Vec<T>;
  for (int64_t i = 0; i < rows; i += kRowsAtOnce) {
    const int64_t count = rows - i < kRowsAtOnce ? rows - i : kRowsAtOnce;
    const auto columns = [&](int64_t j, auto... mask) FASTMLP_INLINED {
      constexpr bool all = sizeof...(mask) == 0;
      typename V::Reg value[kRowsAtOnce];
      FASTMLP_UNROLL
      for (int r = 0; r < kRowsAtOnce; ++r) {
        if (all || r < count) value[r] = load(i + r, j, mask...);
      }
      FASTMLP_UNROLL
      for (int r = 0; r < kRowsAtOnce; ++r) {
        if (!all && r >= count) break;
        store(i + r, j, value[r], mask...);
      }
    };
    int64_t j = 0;
    if (count == kRowsAtOnce) {
      for (; j + V::width <= n; j += V::width) columns(j);
    }
    for (; j < n; j += V::width) columns(j, V::first(n - j < V::width ? n - j : V::width));
  }
}

// An activation's parameters as vectors.
template <typename T, typename Activation>
struct Parameters {
  Reg<T> vectors[kMostParameters];

  FASTMLP_INLINE explicit Parameters(const double* numbers) {
    FASTMLP_UNROLL
    for (int i = 0; i < kMostParameters; ++i) {
      vectors[i] = i < Activation::info.parameter_count() ? Vec<T>::set1(static_cast<T>(numbers[i]))
                                                          : Vec<T>::zero();
    }
  }
};

template <typename T, typename Activation>
void activate(int64_t rows, int64_t n, T* z, T* y, int64_t stride, const T* bias,
              const double* parameters) {
  using V = Vec<T>;
  const Parameters<T, Activation> p(parameters);
  by_vectors<T>(
      rows, n,
      [&](int64_t i, int64_t j, auto... mask) FASTMLP_INLINED {
        const auto sum = V::load(z + i * stride + j, mask...);
        return bias ? V::add(sum, V::load(bias + j, mask...)) : sum;
      },
      [&](int64_t i, int64_t j, auto sum, auto... mask) FASTMLP_INLINED {
        if (z != y) V::store(z + i * stride + j, sum, mask...);
        V::store(y + i * stride + j, Activation::template value<T>(sum, p.vectors), mask...);
      });
}

template <typename T, typename Activation>
void activate_backward(int64_t rows, int64_t n, const T* incoming, int64_t incoming_stride,
                       const T* saved, int64_t saved_stride, T* grad, int64_t grad_stride,
                       const double* parameters) {
  using V = Vec<T>;
  const Parameters<T, Activation> p(parameters);
  by_vectors<T>(
      rows, n,
      [&](int64_t i, int64_t j, auto... mask)
          FASTMLP_INLINED { return V::load(incoming + i * incoming_stride + j, mask...); },
      [&](int64_t i, int64_t j, auto g, auto... mask) FASTMLP_INLINED {
        const auto s = V::load(saved + i * saved_stride + j, mask...);
        V::store(grad + i * grad_stride + j, Activation::template gradient<T>(g, s, p.vectors),
                 mask...);
      });
}

template <typename T>
void combine(int64_t rows, int64_t n, const T* a, int64_t a_stride, const T* factor,
             const T* addend, int64_t addend_stride, T* c, int64_t c_stride) {
  using V = Vec<T>;
  const auto one = V::set1(T(1));
  by_vectors<T>(
      rows, n,
      [&](int64_t i, int64_t j, auto... mask) FASTMLP_INLINED {
        // Both in one instruction, said so: left to the compiler, whole vectors had one rounding
        // and partial ones two, and bits hung on where a thread's rows begin.
        const auto value = V::load(a + i * a_stride + j, mask...);
        const auto factors = factor ? V::load(factor + i * c_stride + j, mask...) : one;
        if (!addend) return factor ? V::mul(value, factors) : value;
        const auto addends = V::load(addend + i * addend_stride + j, mask...);
        return factor ? V::fma(value, factors, addends) : V::add(value, addends);
      },
      [&](int64_t i, int64_t j, auto value, auto... mask)
          FASTMLP_INLINED { V::store(c + i * c_stride + j, value, mask...); });
}
