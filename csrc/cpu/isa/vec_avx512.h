// AVX-512 vectors: the operations that the algorithms of *-inl.h are written in. Included inside a
// target region.
//
// Shared contract of every vec_<isa>.h, for T = float and double:
//   max(a, b), min(a, b) return b when either is NaN; is_positive(x) is x > 0 (false for NaN),
//   is_not_positive(x) is x <= 0 (false for NaN); select(c, a, b) is c ? a : b; times_exp2(x, n) is
//   x·2^n for integral n with 2^n normal; exponent(x) is floor(log2(x)) of a positive normal x,
//   and anything of others; transpose(r) transposes the width × width matrix of rows
//   r; sum_rows(r)[i] is the sum of the lanes of r[i], always added in the same order, whatever i;
//   for T = float, gather(t, i) is t[i], in the compiler's own vectors of integers.
// No include guard: the file belongs to the namespace it is included in, once.

template <typename T>
struct Vec;

template <>
struct Vec<float> {
  using Reg = __m512;
  using Mask = __mmask16;
  static constexpr int width = 16;
  static FASTMLP_INLINE Mask first(int64_t n) { return static_cast<Mask>((1u << n) - 1u); }
  static FASTMLP_INLINE Reg zero() { return _mm512_setzero_ps(); }
  static FASTMLP_INLINE Reg set1(float x) { return _mm512_set1_ps(x); }
  static FASTMLP_INLINE Reg load(const float* p) { return _mm512_loadu_ps(p); }
  static FASTMLP_INLINE Reg load(const float* p, Mask m) { return _mm512_maskz_loadu_ps(m, p); }
  static FASTMLP_INLINE void store(float* p, Reg a) { _mm512_storeu_ps(p, a); }
  static FASTMLP_INLINE void store(float* p, Reg a, Mask m) { _mm512_mask_storeu_ps(p, m, a); }
  static FASTMLP_INLINE Reg add(Reg a, Reg b) { return _mm512_add_ps(a, b); }
  static FASTMLP_INLINE Reg sub(Reg a, Reg b) { return _mm512_sub_ps(a, b); }
  static FASTMLP_INLINE Reg mul(Reg a, Reg b) { return _mm512_mul_ps(a, b); }
  static FASTMLP_INLINE Reg div(Reg a, Reg b) { return _mm512_div_ps(a, b); }
  static FASTMLP_INLINE Reg sqrt(Reg a) { return _mm512_sqrt_ps(a); }
  static FASTMLP_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_ps(a, b, c); }
  static FASTMLP_INLINE Reg max(Reg a, Reg b) { return _mm512_max_ps(a, b); }
  static FASTMLP_INLINE Reg min(Reg a, Reg b) { return _mm512_min_ps(a, b); }
  static FASTMLP_INLINE Reg abs(Reg a) { return _mm512_abs_ps(a); }
  static FASTMLP_INLINE Reg round(Reg a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static FASTMLP_INLINE Reg floor(Reg a) {
    return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  }
  static FASTMLP_INLINE Reg times_exp2(Reg x, Reg n) { return _mm512_scalef_ps(x, n); }
  static FASTMLP_INLINE Reg exponent(Reg x) { return _mm512_getexp_ps(x); }
  static FASTMLP_INLINE Mask is_positive(Reg a) {
    return _mm512_cmp_ps_mask(a, zero(), _CMP_GT_OQ);
  }
  static FASTMLP_INLINE Mask is_not_positive(Reg a) {
    return _mm512_cmp_ps_mask(a, zero(), _CMP_LE_OQ);
  }
  static FASTMLP_INLINE Reg select(Mask c, Reg a, Reg b) { return _mm512_mask_blend_ps(c, b, a); }
  static FASTMLP_INLINE Reg with_sign_of(Reg a, Reg s) {
    return _mm512_or_ps(_mm512_andnot_ps(_mm512_set1_ps(-0.0f), a),
                        _mm512_and_ps(_mm512_set1_ps(-0.0f), s));
  }

  template <typename Words>  // 16 of 32 bits
  static FASTMLP_INLINE Words gather(const uint32_t* table, Words index) {
    return Words(_mm512_i32gather_epi32(__m512i(index), table, 4));
  }

  static FASTMLP_INLINE void transpose(Reg (&r)[16]) {
    Reg t[16];
    FASTMLP_UNROLL
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    FASTMLP_UNROLL
    for (int i = 0; i < 16; i += 4) {
      r[i] = pd(_mm512_unpacklo_pd(dp(t[i]), dp(t[i + 2])));
      r[i + 1] = pd(_mm512_unpackhi_pd(dp(t[i]), dp(t[i + 2])));
      r[i + 2] = pd(_mm512_unpacklo_pd(dp(t[i + 1]), dp(t[i + 3])));
      r[i + 3] = pd(_mm512_unpackhi_pd(dp(t[i + 1]), dp(t[i + 3])));
    }
    FASTMLP_UNROLL
    for (int i = 0; i < 4; ++i) {
      const Reg a = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88),
                b = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
      const Reg c = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88),
                d = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
      t[i] = _mm512_shuffle_f32x4(a, c, 0x88);
      t[i + 8] = _mm512_shuffle_f32x4(a, c, 0xdd);
      t[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
      t[i + 12] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
    FASTMLP_UNROLL
    for (int i = 0; i < 16; ++i) r[i] = t[i];
  }

  static FASTMLP_INLINE Reg sum_rows(const Reg (&r)[16]) {
    Reg t[8];
    FASTMLP_UNROLL
    for (int i = 0; i < 8; ++i) {
      t[i] = add(_mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]),
                 _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]));
    }
    FASTMLP_UNROLL
    for (int i = 0; i < 4;
         ++i) {  // each 128-bit part now holds partial sums of the rows 4i … 4i + 3
      t[i] = add(pd(_mm512_unpacklo_pd(dp(t[2 * i]), dp(t[2 * i + 1]))),
                 pd(_mm512_unpackhi_pd(dp(t[2 * i]), dp(t[2 * i + 1]))));
    }
    const Reg a =
        add(_mm512_shuffle_f32x4(t[0], t[1], 0x88), _mm512_shuffle_f32x4(t[0], t[1], 0xdd));
    const Reg b =
        add(_mm512_shuffle_f32x4(t[2], t[3], 0x88), _mm512_shuffle_f32x4(t[2], t[3], 0xdd));
    return add(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
  }

 private:
  static FASTMLP_INLINE __m512d dp(Reg a) { return _mm512_castps_pd(a); }
  static FASTMLP_INLINE Reg pd(__m512d a) { return _mm512_castpd_ps(a); }
};

template <>
struct Vec<double> {
  using Reg = __m512d;
  using Mask = __mmask8;
  static constexpr int width = 8;
  static FASTMLP_INLINE Mask first(int64_t n) { return static_cast<Mask>((1u << n) - 1u); }
  static FASTMLP_INLINE Reg zero() { return _mm512_setzero_pd(); }
  static FASTMLP_INLINE Reg set1(double x) { return _mm512_set1_pd(x); }
  static FASTMLP_INLINE Reg load(const double* p) { return _mm512_loadu_pd(p); }
  static FASTMLP_INLINE Reg load(const double* p, Mask m) { return _mm512_maskz_loadu_pd(m, p); }
  static FASTMLP_INLINE void store(double* p, Reg a) { _mm512_storeu_pd(p, a); }
  static FASTMLP_INLINE void store(double* p, Reg a, Mask m) { _mm512_mask_storeu_pd(p, m, a); }
  static FASTMLP_INLINE Reg add(Reg a, Reg b) { return _mm512_add_pd(a, b); }
  static FASTMLP_INLINE Reg sub(Reg a, Reg b) { return _mm512_sub_pd(a, b); }
  static FASTMLP_INLINE Reg mul(Reg a, Reg b) { return _mm512_mul_pd(a, b); }
  static FASTMLP_INLINE Reg div(Reg a, Reg b) { return _mm512_div_pd(a, b); }
  static FASTMLP_INLINE Reg sqrt(Reg a) { return _mm512_sqrt_pd(a); }
  static FASTMLP_INLINE Reg fma(Reg a, Reg b, Reg c) { return _mm512_fmadd_pd(a, b, c); }
  static FASTMLP_INLINE Reg max(Reg a, Reg b) { return _mm512_max_pd(a, b); }
  static FASTMLP_INLINE Reg min(Reg a, Reg b) { return _mm512_min_pd(a, b); }
  static FASTMLP_INLINE Reg abs(Reg a) { return _mm512_abs_pd(a); }
  static FASTMLP_INLINE Reg round(Reg a) {
    return _mm512_roundscale_pd(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static FASTMLP_INLINE Reg floor(Reg a) {
    return _mm512_roundscale_pd(a, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  }
  static FASTMLP_INLINE Reg times_exp2(Reg x, Reg n) { return _mm512_scalef_pd(x, n); }
  static FASTMLP_INLINE Reg exponent(Reg x) { return _mm512_getexp_pd(x); }
  static FASTMLP_INLINE Mask is_positive(Reg a) {
    return _mm512_cmp_pd_mask(a, zero(), _CMP_GT_OQ);
  }
  static FASTMLP_INLINE Mask is_not_positive(Reg a) {
    return _mm512_cmp_pd_mask(a, zero(), _CMP_LE_OQ);
  }
  static FASTMLP_INLINE Reg select(Mask c, Reg a, Reg b) { return _mm512_mask_blend_pd(c, b, a); }
  static FASTMLP_INLINE Reg with_sign_of(Reg a, Reg s) {
    return _mm512_or_pd(_mm512_andnot_pd(_mm512_set1_pd(-0.0), a),
                        _mm512_and_pd(_mm512_set1_pd(-0.0), s));
  }

  static FASTMLP_INLINE void transpose(Reg (&r)[8]) {
    Reg t[8];
    FASTMLP_UNROLL
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
    }
    FASTMLP_UNROLL
    for (int i = 0; i < 2; ++i) {
      const Reg a = _mm512_shuffle_f64x2(t[i], t[i + 2], 0x88),
                b = _mm512_shuffle_f64x2(t[i], t[i + 2], 0xdd);
      const Reg c = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0x88),
                d = _mm512_shuffle_f64x2(t[i + 4], t[i + 6], 0xdd);
      r[i] = _mm512_shuffle_f64x2(a, c, 0x88);
      r[i + 4] = _mm512_shuffle_f64x2(a, c, 0xdd);
      r[i + 2] = _mm512_shuffle_f64x2(b, d, 0x88);
      r[i + 6] = _mm512_shuffle_f64x2(b, d, 0xdd);
    }
  }

  static FASTMLP_INLINE Reg sum_rows(const Reg (&r)[8]) {
    Reg t[4];
    FASTMLP_UNROLL
    for (int i = 0; i < 4;
         ++i) {  // each 128-bit part now holds partial sums of the rows 2i and 2i + 1
      t[i] = add(_mm512_unpacklo_pd(r[2 * i], r[2 * i + 1]),
                 _mm512_unpackhi_pd(r[2 * i], r[2 * i + 1]));
    }
    const Reg a =
        add(_mm512_shuffle_f64x2(t[0], t[1], 0x88), _mm512_shuffle_f64x2(t[0], t[1], 0xdd));
    const Reg b =
        add(_mm512_shuffle_f64x2(t[2], t[3], 0x88), _mm512_shuffle_f64x2(t[2], t[3], 0xdd));
    return add(_mm512_shuffle_f64x2(a, b, 0x88), _mm512_shuffle_f64x2(a, b, 0xdd));
  }
};
