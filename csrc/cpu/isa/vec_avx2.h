// AVX2 + FMA vectors; the contract stands in vec_avx512.h. Included inside a target region.

// The first lanes, which are there. A masked store takes a dozen cycles (AMD, Zen 3): vectors are
// stored whole, or by halves, quarters and eighths.
struct Lanes {
  __m256i bits;
  int count;
};

template <typename T>
struct Vec;

template <>
struct Vec<float> {
  using Reg = __m256;
  using Mask = Lanes;
  static constexpr int width = 8;
  static FASTMLP_INLINE Mask first(int64_t n) {
    return {_mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                               _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
            static_cast<int>(n)};
  }
  static FASTMLP_INLINE Reg zero() { return _mm256_setzero_ps(); }
  static FASTMLP_INLINE Reg set1(float x) { return _mm256_set1_ps(x); }
  static FASTMLP_INLINE Reg load(const float* p) { return _mm256_loadu_ps(p); }
  static FASTMLP_INLINE Reg load(const float* p, Mask m) { return _mm256_maskload_ps(p, m.bits); }
  static FASTMLP_INLINE void store(float* p, Reg a) { _mm256_storeu_ps(p, a); }
  static FASTMLP_INLINE void store(float* p, Reg a, Mask m) {
    if (m.count == width) return store(p, a);
    __m128 rest = _mm256_castps256_ps128(a);
    if (m.count & 4) {
      _mm_storeu_ps(p, rest);
      rest = _mm256_extractf128_ps(a, 1);
      p += 4;
    }
    if (m.count & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
      rest = _mm_movehl_ps(rest, rest);
      p += 2;
    }
    if (m.count & 1) _mm_store_ss(p, rest);
  }
  static FASTMLP_INLINE Reg add(Reg a, Reg b) { return _mm256_add_ps(a, b); }
  static FASTMLP_INLINE Reg sub(Reg a, Reg b) { return _mm256_sub_ps(a, b); }
  static FASTMLP_INLINE Reg mul(Reg a, Reg b) { return _mm256_mul_ps(a, b); }
  static FASTMLP_INLINE Reg div(Reg a, Reg b) { return _mm256_div_ps(a, b); }
  static FASTMLP_INLINE Reg sqrt(Reg a) { return _mm256_sqrt_ps(a); }
  static FASTMLP_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_ps(a, b, c); }
  static FASTMLP_INLINE Reg max(Reg a, Reg b) { return _mm256_max_ps(a, b); }
  static FASTMLP_INLINE Reg min(Reg a, Reg b) { return _mm256_min_ps(a, b); }
  static FASTMLP_INLINE Reg abs(Reg a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
  static FASTMLP_INLINE Reg round(Reg a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static FASTMLP_INLINE Reg floor(Reg a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  }
  static FASTMLP_INLINE Reg times_exp2(Reg x, Reg n) {
    const __m256i bits =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return mul(x, _mm256_castsi256_ps(bits));
  }
  static FASTMLP_INLINE Reg exponent(Reg x) {
    const __m256i biased = _mm256_srli_epi32(_mm256_castps_si256(x), 23);
    return _mm256_cvtepi32_ps(_mm256_sub_epi32(biased, _mm256_set1_epi32(127)));
  }
  static FASTMLP_INLINE Reg is_positive(Reg a) { return _mm256_cmp_ps(a, zero(), _CMP_GT_OQ); }
  static FASTMLP_INLINE Reg is_not_positive(Reg a) { return _mm256_cmp_ps(a, zero(), _CMP_LE_OQ); }
  static FASTMLP_INLINE Reg select(Reg c, Reg a, Reg b) { return _mm256_blendv_ps(b, a, c); }
  static FASTMLP_INLINE Reg with_sign_of(Reg a, Reg s) {
    return _mm256_or_ps(abs(a), _mm256_and_ps(_mm256_set1_ps(-0.0f), s));
  }

  template <typename Words>  // 8 of 32 bits
  static FASTMLP_INLINE Words gather(const uint32_t* table, Words index) {
    return Words(_mm256_i32gather_epi32(reinterpret_cast<const int*>(table), __m256i(index), 4));
  }

  static FASTMLP_INLINE void transpose(Reg (&r)[8]) {
    Reg t[8];
    FASTMLP_UNROLL
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    FASTMLP_UNROLL
    for (int i = 0; i < 8; i += 4) {
      r[i] = pd(_mm256_unpacklo_pd(dp(t[i]), dp(t[i + 2])));
      r[i + 1] = pd(_mm256_unpackhi_pd(dp(t[i]), dp(t[i + 2])));
      r[i + 2] = pd(_mm256_unpacklo_pd(dp(t[i + 1]), dp(t[i + 3])));
      r[i + 3] = pd(_mm256_unpackhi_pd(dp(t[i + 1]), dp(t[i + 3])));
    }
    FASTMLP_UNROLL
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
      t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
    FASTMLP_UNROLL
    for (int i = 0; i < 8; ++i) r[i] = t[i];
  }

  static FASTMLP_INLINE Reg sum_rows(const Reg (&r)[8]) {
    Reg t[4];
    FASTMLP_UNROLL
    for (int i = 0; i < 4; ++i) {
      t[i] = add(_mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]),
                 _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]));
    }
    FASTMLP_UNROLL
    for (int i = 0; i < 2;
         ++i) {  // each 128-bit half now holds partial sums of the rows 4i … 4i + 3
      t[i] = add(pd(_mm256_unpacklo_pd(dp(t[2 * i]), dp(t[2 * i + 1]))),
                 pd(_mm256_unpackhi_pd(dp(t[2 * i]), dp(t[2 * i + 1]))));
    }
    return add(_mm256_permute2f128_ps(t[0], t[1], 0x20), _mm256_permute2f128_ps(t[0], t[1], 0x31));
  }

 private:
  static FASTMLP_INLINE __m256d dp(Reg a) { return _mm256_castps_pd(a); }
  static FASTMLP_INLINE Reg pd(__m256d a) { return _mm256_castpd_ps(a); }
};

template <>
struct Vec<double> {
  using Reg = __m256d;
  using Mask = Lanes;
  static constexpr int width = 4;
  static FASTMLP_INLINE Mask first(int64_t n) {
    return {_mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)),
            static_cast<int>(n)};
  }
  static FASTMLP_INLINE Reg zero() { return _mm256_setzero_pd(); }
  static FASTMLP_INLINE Reg set1(double x) { return _mm256_set1_pd(x); }
  static FASTMLP_INLINE Reg load(const double* p) { return _mm256_loadu_pd(p); }
  static FASTMLP_INLINE Reg load(const double* p, Mask m) { return _mm256_maskload_pd(p, m.bits); }
  static FASTMLP_INLINE void store(double* p, Reg a) { _mm256_storeu_pd(p, a); }
  static FASTMLP_INLINE void store(double* p, Reg a, Mask m) {
    if (m.count == width) return store(p, a);
    __m128d rest = _mm256_castpd256_pd128(a);
    if (m.count & 2) {
      _mm_storeu_pd(p, rest);
      rest = _mm256_extractf128_pd(a, 1);
      p += 2;
    }
    if (m.count & 1) _mm_store_sd(p, rest);
  }
  static FASTMLP_INLINE Reg add(Reg a, Reg b) { return _mm256_add_pd(a, b); }
  static FASTMLP_INLINE Reg sub(Reg a, Reg b) { return _mm256_sub_pd(a, b); }
  static FASTMLP_INLINE Reg mul(Reg a, Reg b) { return _mm256_mul_pd(a, b); }
  static FASTMLP_INLINE Reg div(Reg a, Reg b) { return _mm256_div_pd(a, b); }
  static FASTMLP_INLINE Reg sqrt(Reg a) { return _mm256_sqrt_pd(a); }
  static FASTMLP_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm256_fmadd_pd(a, b, c); }
  static FASTMLP_INLINE Reg max(Reg a, Reg b) { return _mm256_max_pd(a, b); }
  static FASTMLP_INLINE Reg min(Reg a, Reg b) { return _mm256_min_pd(a, b); }
  static FASTMLP_INLINE Reg abs(Reg a) { return _mm256_andnot_pd(_mm256_set1_pd(-0.0), a); }
  static FASTMLP_INLINE Reg round(Reg a) {
    return _mm256_round_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static FASTMLP_INLINE Reg floor(Reg a) {
    return _mm256_round_pd(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  }
  static FASTMLP_INLINE Reg times_exp2(Reg x, Reg n) {
    const __m256i whole = _mm256_cvtepi32_epi64(_mm256_cvtpd_epi32(n));
    const __m256i bits = _mm256_slli_epi64(_mm256_add_epi64(whole, _mm256_set1_epi64x(1023)), 52);
    return mul(x, _mm256_castsi256_pd(bits));
  }
  static FASTMLP_INLINE Reg exponent(Reg x) {
    // The last bits of 2^52 are its ones: AVX2 converts no integers of 64 bits.
    const Reg shift = set1(4503599627370496.0);
    const __m256i biased = _mm256_srli_epi64(_mm256_castpd_si256(x), 52);
    const Reg sum = _mm256_castsi256_pd(_mm256_or_si256(biased, _mm256_castpd_si256(shift)));
    return sub(sum, set1(4503599627370496.0 + 1023));
  }
  static FASTMLP_INLINE Reg is_positive(Reg a) { return _mm256_cmp_pd(a, zero(), _CMP_GT_OQ); }
  static FASTMLP_INLINE Reg is_not_positive(Reg a) { return _mm256_cmp_pd(a, zero(), _CMP_LE_OQ); }
  static FASTMLP_INLINE Reg select(Reg c, Reg a, Reg b) { return _mm256_blendv_pd(b, a, c); }
  static FASTMLP_INLINE Reg with_sign_of(Reg a, Reg s) {
    return _mm256_or_pd(abs(a), _mm256_and_pd(_mm256_set1_pd(-0.0), s));
  }

  static FASTMLP_INLINE void transpose(Reg (&r)[4]) {
    const Reg a = _mm256_unpacklo_pd(r[0], r[1]), b = _mm256_unpackhi_pd(r[0], r[1]);
    const Reg c = _mm256_unpacklo_pd(r[2], r[3]), d = _mm256_unpackhi_pd(r[2], r[3]);
    r[0] = _mm256_permute2f128_pd(a, c, 0x20);
    r[1] = _mm256_permute2f128_pd(b, d, 0x20);
    r[2] = _mm256_permute2f128_pd(a, c, 0x31);
    r[3] = _mm256_permute2f128_pd(b, d, 0x31);
  }

  static FASTMLP_INLINE Reg sum_rows(const Reg (&r)[4]) {
    const Reg a = add(_mm256_unpacklo_pd(r[0], r[1]), _mm256_unpackhi_pd(r[0], r[1]));
    const Reg b = add(_mm256_unpacklo_pd(r[2], r[3]), _mm256_unpackhi_pd(r[2], r[3]));
    return add(_mm256_permute2f128_pd(a, b, 0x20), _mm256_permute2f128_pd(a, b, 0x31));
  }
};
