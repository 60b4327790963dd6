// Plain C++ vectors for any CPU; the contract stands in vec_avx512.h. Four lanes a register: what
// the compiler's baseline (SSE2 on x86-64, NEON on Arm) turns into single instructions.

template <typename T>
struct Vec {
  static constexpr int width = 4;
  struct Reg {
    T lane[width];
  };
  struct Mask {
    bool lane[width];
  };

  template <typename F>
  static FASTMLP_INLINE Reg each(F f) {
    Reg r;
    FASTMLP_UNROLL
    for (int i = 0; i < width; ++i) r.lane[i] = f(i);
    return r;
  }
  template <typename F>
  static FASTMLP_INLINE Mask test(F f) {
    Mask r;
    FASTMLP_UNROLL
    for (int i = 0; i < width; ++i) r.lane[i] = f(i);
    return r;
  }

  static FASTMLP_INLINE Mask first(int64_t n) {
    return test([&](int i) { return i < n; });
  }
  static FASTMLP_INLINE Reg zero() { return set1(T(0)); }
  static FASTMLP_INLINE Reg set1(T x) {
    return each([&](int) { return x; });
  }
  static FASTMLP_INLINE Reg load(const T* p) {
    return each([&](int i) { return p[i]; });
  }
  static FASTMLP_INLINE Reg load(const T* p, Mask m) {
    return each([&](int i) { return m.lane[i] ? p[i] : T(0); });
  }
  static FASTMLP_INLINE void store(T* p, Reg a) {
    FASTMLP_UNROLL
    for (int i = 0; i < width; ++i) p[i] = a.lane[i];
  }
  static FASTMLP_INLINE void store(T* p, Reg a, Mask m) {
    FASTMLP_UNROLL
    for (int i = 0; i < width; ++i) {
      if (m.lane[i]) p[i] = a.lane[i];
    }
  }
  static FASTMLP_INLINE Reg add(Reg a, Reg b) {
    return each([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static FASTMLP_INLINE Reg sub(Reg a, Reg b) {
    return each([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static FASTMLP_INLINE Reg mul(Reg a, Reg b) {
    return each([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static FASTMLP_INLINE Reg div(Reg a, Reg b) {
    return each([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static FASTMLP_INLINE Reg fma(Reg a, Reg b, Reg c) {
    return each([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static FASTMLP_INLINE Reg max(Reg a, Reg b) {
    return each([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static FASTMLP_INLINE Reg min(Reg a, Reg b) {
    return each([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static FASTMLP_INLINE Reg sqrt(Reg a) {
    return each([&](int i) { return std::sqrt(a.lane[i]); });
  }
  static FASTMLP_INLINE Reg abs(Reg a) {
    return each([&](int i) { return std::fabs(a.lane[i]); });
  }
  static FASTMLP_INLINE Reg round(Reg a) {
    return each([&](int i) { return std::nearbyint(a.lane[i]); });
  }
  static FASTMLP_INLINE Reg floor(Reg a) {
    return each([&](int i) { return std::floor(a.lane[i]); });
  }
  static FASTMLP_INLINE Reg times_exp2(Reg x, Reg n) {
    return each([&](int i) {
      return n.lane[i] == n.lane[i] ? std::ldexp(x.lane[i], static_cast<int>(n.lane[i]))
                                    : n.lane[i];
    });
  }
  static FASTMLP_INLINE Reg exponent(Reg x) {
    return each([&](int i) {
      int above = 0;
      std::frexp(x.lane[i], &above);
      return static_cast<T>(above - 1);
    });
  }
  static FASTMLP_INLINE Mask is_positive(Reg a) {
    return test([&](int i) { return a.lane[i] > T(0); });
  }
  static FASTMLP_INLINE Mask is_not_positive(Reg a) {
    return test([&](int i) { return a.lane[i] <= T(0); });
  }
  static FASTMLP_INLINE Reg select(Mask c, Reg a, Reg b) {
    return each([&](int i) { return c.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static FASTMLP_INLINE Reg with_sign_of(Reg a, Reg s) {
    return each([&](int i) { return std::copysign(a.lane[i], s.lane[i]); });
  }

  template <typename Words>  // a compiler's vector
  static FASTMLP_INLINE Words gather(const uint32_t* table, Words index) {
    Words result;
    FASTMLP_UNROLL
    for (int i = 0; i < width; ++i) result[i] = table[index[i]];
    return result;
  }

  static FASTMLP_INLINE void transpose(Reg (&r)[width]) {
    FASTMLP_UNROLL
    for (int i = 0; i < width; ++i) {
      FASTMLP_UNROLL
      for (int j = 0; j < i; ++j) {
        const T t = r[i].lane[j];
        r[i].lane[j] = r[j].lane[i];
        r[j].lane[i] = t;
      }
    }
  }
  static FASTMLP_INLINE Reg sum_rows(const Reg (&r)[width]) {
    return each(
        [&](int i) { return (r[i].lane[0] + r[i].lane[1]) + (r[i].lane[2] + r[i].lane[3]); });
  }
};
