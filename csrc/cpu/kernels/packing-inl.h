// Copies of matrices in the order in which they are read. Included inside a target region, after
// vec_<isa>.h.

// packed[p][j] = source[j][p] for p < k and j < n, and zero from there to j = filled - 1.
template <typename T>
void pack_transposed(int64_t n, int64_t k, const T* source, int64_t stride, T* packed,
                     int64_t packed_stride, int64_t filled) {
  using V = Vec<T>;
  constexpr int w = V::width;
  for (int64_t j = 0; j < filled; j += w) {
    const int64_t rows = n - j < w ? n - j : w;
    const auto kept = V::first(filled - j < w ? filled - j : w);
    for (int64_t p = 0; p < k; p += w) {
      const int64_t columns = k - p < w ? k - p : w;
      const auto mask = V::first(columns);
      typename V::Reg block[w];
      const T* from = source + j * stride + p;
      T* to = packed + p * packed_stride + j;
      if (rows == w && columns == w) {
        FASTMLP_UNROLL
        for (int i = 0; i < w; ++i) {
          block[i] = V::load(from + i * stride);
          __builtin_prefetch(from + i * stride + kTuning.packs_ahead * w);
        }
      } else {
        FASTMLP_UNROLL
        for (int i = 0; i < w; ++i)
          block[i] = i < rows ? V::load(from + i * stride, mask) : V::zero();
      }
      V::transpose(block);
      FASTMLP_UNROLL
      for (int i = 0; i < w; ++i) {
        if (i < columns) V::store(to + i * packed_stride, block[i], kept);
      }
    }
  }
}

// packed[p][j] = source[p][j] for p < k and j < n, and zero from there to the end of packed's row.
template <typename T>
void pack_rows(int64_t n, int64_t k, const T* source, int64_t stride, T* packed,
               int64_t packed_stride) {
  using V = Vec<T>;
  const int64_t last = (packed_stride - 1) / V::width * V::width;
  const auto mask = V::first(n > last ? n - last : 0), kept = V::first(packed_stride - last);
  for (int64_t p = 0; p < k; ++p) {
    const T* from = source + p * stride;
    T* to = packed + p * packed_stride;
    for (int64_t j = 0; j < last; j += V::width) {
      __builtin_prefetch(from + kTuning.packs_ahead * stride + j);
      V::store(to + j, n - j < V::width ? V::load(from + j, V::first(n > j ? n - j : 0))
                                        : V::load(from + j));
    }
    __builtin_prefetch(from + kTuning.packs_ahead * stride + last);
    V::store(to + last, V::load(from + last, mask), kept);
  }
}
