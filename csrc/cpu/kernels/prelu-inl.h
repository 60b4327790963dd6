// x where x > 0, else x times a weight that is learned, of each column or shared. Included inside a
// target region.

template <typename T>
class Slopes {
 public:
  // shared: whether there is one for all columns.
  FASTMLP_INLINE Slopes(const T* weight, bool shared)
      : one_(Vec<T>::set1(shared ? *weight : T(0))), each_(shared ? nullptr : weight) {}
  template <typename... Mask>
  FASTMLP_INLINE Reg<T> of(int64_t j, Mask... mask) const {
    return each_ ? Vec<T>::load(each_ + j, mask...) : one_;
  }

 private:
  Reg<T> one_;
  const T* each_;
};

// `above` where x > 0, else `below`; NaN is not.
template <typename T>
FASTMLP_INLINE Reg<T> where_positive(Reg<T> x, Reg<T> above, Reg<T> below) {
  return Vec<T>::select(Vec<T>::is_positive(x), above, below);
}

template <typename T>
void prelu(int64_t rows, int64_t n, const T* x, int64_t x_stride, const T* weight, bool shared,
           T* z, int64_t z_stride) {
  using V = Vec<T>;
  const Slopes<T> slopes(weight, shared);
  by_vectors<T>(
      rows, n,
      [&](int64_t i, int64_t j, auto... mask)
          FASTMLP_INLINED { return V::load(x + i * x_stride + j, mask...); },
      [&](int64_t i, int64_t j, auto a, auto... mask) FASTMLP_INLINED {
        V::store(z + i * z_stride + j, where_positive<T>(a, a, V::mul(a, slopes.of(j, mask...))),
                 mask...);
      });
}

template <typename T>
void prelu_sums(int64_t rows, int64_t n, const T* dz, int64_t dz_stride, const T* x,
                int64_t x_stride, T* sums) {
  using V = Vec<T>;
  sums_of_columns<T, 1>(rows, n,
                        [&](int64_t i, int64_t j, auto& found, auto... mask) FASTMLP_INLINED {
                          const auto a = V::load(x + i * x_stride + j, mask...);
                          const auto g = V::load(dz + i * dz_stride + j, mask...);
                          found[0] = where_positive<T>(a, V::zero(), V::mul(a, g));
                        },
                        {sums});
}

template <typename T>
void prelu_backward(int64_t rows, int64_t n, const T* dz, int64_t dz_stride, const T* x,
                    int64_t x_stride, const T* weight, bool shared, T* dx, int64_t dx_stride) {
  using V = Vec<T>;
  const Slopes<T> slopes(weight, shared);
  by_vectors<T>(
      rows, n,
      [&](int64_t i, int64_t j, auto... mask)
          FASTMLP_INLINED { return V::load(dz + i * dz_stride + j, mask...); },
      [&](int64_t i, int64_t j, auto g, auto... mask) FASTMLP_INLINED {
        const auto a = V::load(x + i * x_stride + j, mask...);
        V::store(dx + i * dx_stride + j, where_positive<T>(a, g, V::mul(g, slopes.of(j, mask...))),
                 mask...);
      });
}
