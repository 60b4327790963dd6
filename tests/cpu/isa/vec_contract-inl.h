// The contract of Vec, which stands in csrc/cpu/isa/vec_avx512.h: each operation lane by lane
// beside plain arithmetic. Included inside a target region, after a vec_<isa>.h.

// Not inside of the template: GCC leaves out the attribute there.
typedef uint32_t Words __attribute__((vector_size(4 * Vec<float>::width)));

template <typename T>
struct VecContract {
  using V = Vec<T>;
  using R = typename V::Reg;
  static constexpr int kWidth = V::width;
  using Lanes = std::array<T, kWidth>;

  const char* const isa;
  int faults = 0;

  void fail(const char* what, int lane, T got, T expected) {
    ++faults;
    std::printf("%s float%d: %s, lane %d: %.17g, expected %.17g\n", isa, int(8 * sizeof(T)), what,
                lane, double(got), double(expected));
  }

  static bool same(T a, T b) {
    if (a != a || b != b) return a != a && b != b;  // which NaN is nobody's matter
    return a == b && std::signbit(a) == std::signbit(b);
  }

  void expect(const char* what, const Lanes& got, const Lanes& expected) {
    for (int i = 0; i < kWidth; ++i) {
      if (!same(got[i], expected[i])) fail(what, i, got[i], expected[i]);
    }
  }

  static Lanes lanes_of(R r) {
    Lanes lanes;
    V::store(lanes.data(), r);
    return lanes;
  }
  static R reg_of(const Lanes& lanes) { return V::load(lanes.data()); }

  // Registers whose lanes meet all pairs of these, and others.
  static std::vector<T> numbers() {
    using L = std::numeric_limits<T>;
    std::vector<T> all = {T(0),           -T(0),           L::infinity(), -L::infinity(),
                          L::quiet_NaN(), L::max(),        -L::max(),     L::min(),
                          -L::min(),      L::denorm_min(), T(1),          -T(1),
                          T(0.5),         T(1.5),          -T(2.5),       T(0.3),
                          -T(123.456),    T(1e-3),         T(3)};
    uint32_t state = 1;
    for (int i = 0; i < 64; ++i) {
      state = state * 1664525u + 1013904223u;
      all.push_back((T(state >> 8) / T(1 << 24) - T(0.5)) * T(i % 2 ? 40 : 2));
    }
    return all;
  }

  template <typename Visit>
  void each_pair(const Visit& visit) {
    const std::vector<T> all = numbers();
    for (size_t shift = 0; shift < all.size(); ++shift) {
      for (size_t first = 0; first < all.size(); first += kWidth) {
        Lanes a, b;
        for (int i = 0; i < kWidth; ++i) {
          a[i] = all[(first + i) % all.size()];
          b[i] = all[(first + i + shift) % all.size()];
        }
        visit(a, b);
      }
    }
  }

  template <typename Of>
  static Lanes each(const Of& of) {
    Lanes lanes;
    for (int i = 0; i < kWidth; ++i) lanes[i] = of(i);
    return lanes;
  }

  void check_arithmetic() {
    each_pair([&](const Lanes& a, const Lanes& b) {
      const R x = reg_of(a), y = reg_of(b);
      expect("add", lanes_of(V::add(x, y)), each([&](int i) { return a[i] + b[i]; }));
      expect("sub", lanes_of(V::sub(x, y)), each([&](int i) { return a[i] - b[i]; }));
      expect("mul", lanes_of(V::mul(x, y)), each([&](int i) { return a[i] * b[i]; }));
      expect("div", lanes_of(V::div(x, y)), each([&](int i) { return a[i] / b[i]; }));
      expect("max", lanes_of(V::max(x, y)), each([&](int i) { return a[i] > b[i] ? a[i] : b[i]; }));
      expect("min", lanes_of(V::min(x, y)), each([&](int i) { return a[i] < b[i] ? a[i] : b[i]; }));
      expect("with_sign_of", lanes_of(V::with_sign_of(x, y)),
             each([&](int i) { return a[i] != a[i] ? a[i] : std::copysign(a[i], b[i]); }));
      expect("select, is_positive", lanes_of(V::select(V::is_positive(x), x, y)),
             each([&](int i) { return a[i] > 0 ? a[i] : b[i]; }));
      expect("select, is_not_positive", lanes_of(V::select(V::is_not_positive(x), x, y)),
             each([&](int i) { return a[i] <= 0 ? a[i] : b[i]; }));
      expect("sqrt", lanes_of(V::sqrt(x)), each([&](int i) { return std::sqrt(a[i]); }));
      expect("abs", lanes_of(V::abs(x)), each([&](int i) { return std::fabs(a[i]); }));
      expect("round", lanes_of(V::round(x)), each([&](int i) { return std::nearbyint(a[i]); }));
      expect("floor", lanes_of(V::floor(x)), each([&](int i) { return std::floor(a[i]); }));
      // One rounding or two.
      const Lanes sum = lanes_of(V::fma(x, y, V::set1(T(0.7))));
      for (int i = 0; i < kWidth; ++i) {
        volatile T product = a[i] * b[i];
        const T two = product + T(0.7), one = std::fma(a[i], b[i], T(0.7));
        if (!same(sum[i], one) && !same(sum[i], two)) fail("fma", i, sum[i], one);
      }
    });
  }

  void check_powers() {
    const int least = std::numeric_limits<T>::min_exponent - 1;  // of a normal 2^n
    const int most = std::numeric_limits<T>::max_exponent - 1;
    for (int n = least; n <= most; ++n) {
      for (T x : {T(1), T(-1.25), T(0), T(1.999)}) {
        expect("times_exp2", lanes_of(V::times_exp2(V::set1(x), V::set1(T(n)))),
               each([&](int) { return std::ldexp(x, n); }));
      }
      for (T x : {T(1), T(1.25), T(1.999)}) {
        expect("exponent", lanes_of(V::exponent(V::set1(std::ldexp(x, n)))),
               each([&](int) { return T(n); }));
      }
    }
  }

  // Masked loads and stores touch nothing else: what follows may not be read.
  void check_memory() {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    char* const pages = static_cast<char*>(
        mmap(nullptr, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(pages + page, page, PROT_NONE);
    T* const end = reinterpret_cast<T*>(pages + page);
    for (int n = 0; n <= kWidth; ++n) {
      T* const p = end - n;
      for (int i = 0; i < n; ++i) p[i] = T(i + 1);
      const R got = V::load(p, V::first(n));
      expect("masked load", lanes_of(got), each([&](int i) { return i < n ? T(i + 1) : T(0); }));
      p[-1] = T(77);
      V::store(p, V::set1(T(5)), V::first(n));
      for (int i = 0; i < n; ++i) {
        if (p[i] != T(5)) fail("masked store", i, p[i], T(5));
      }
      if (p[-1] != T(77)) fail("masked store before", -1, p[-1], T(77));
    }
    munmap(pages, 2 * page);
  }

  void check_rows() {
    R rows[kWidth], again[kWidth];
    Lanes numbers[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      numbers[i] = each([&](int j) { return T(1 + i * kWidth + j) / T(3); });
      rows[i] = reg_of(numbers[i]);
    }
    const Lanes sums = lanes_of(V::sum_rows(rows));
    for (int i = 0; i < kWidth; ++i) {
      T sum = 0;
      for (const T one : numbers[i]) sum += one;
      const T bound = sum * T(kWidth) * std::numeric_limits<T>::epsilon();
      if (!(std::fabs(sums[i] - sum) <= bound)) fail("sum_rows", i, sums[i], sum);
    }
    // In the same order, whatever the row.
    for (int shift = 1; shift < kWidth; ++shift) {
      for (int i = 0; i < kWidth; ++i) again[i] = rows[(i + shift) % kWidth];
      expect("sum_rows, moved", lanes_of(V::sum_rows(again)),
             each([&](int i) { return sums[(i + shift) % kWidth]; }));
    }
    V::transpose(rows);
    for (int i = 0; i < kWidth; ++i)
      expect("transpose", lanes_of(rows[i]), each([&](int j) { return numbers[j][i]; }));
  }

  void check_gather() {
    if constexpr (sizeof(T) == 4) {
      uint32_t table[256];
      for (uint32_t i = 0; i < 256; ++i) table[i] = i * 2654435761u;
      Words index, got;
      for (int i = 0; i < kWidth; ++i) index[i] = uint32_t(255 - 7 * i);
      got = V::gather(table, index);
      for (int i = 0; i < kWidth; ++i) {
        if (got[i] != table[index[i]]) fail("gather", i, T(got[i]), T(table[index[i]]));
      }
    }
  }

  int run() {
    check_arithmetic();
    check_powers();
    check_memory();
    check_rows();
    check_gather();
    return faults;
  }
};

inline int check_vec(const char* isa) {
  return VecContract<float>{isa}.run() + VecContract<double>{isa}.run();
}
