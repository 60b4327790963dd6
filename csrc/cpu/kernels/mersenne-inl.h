// Random numbers. Included inside a target region. Plain C++, which the compiler turns into the
// vectors of the target: it is eight to twelve times as fast as a generator that is asked for one
// number at a time, with the same numbers.

inline uint32_t twist(uint32_t a, uint32_t b) {
  const uint32_t mixed = (a & 0x80000000u) | (b & 0x7fffffffu);
  return (mixed >> 1) ^ (-(b & 1u) & 0x9908b0dfu);
}

inline void renew(MersenneTwister& generator) {
  constexpr int kWords = MersenneTwister::kWords, kMiddle = MersenneTwister::kMiddle;
  uint32_t* const s = generator.state;
  for (int i = 0; i < kWords - kMiddle; ++i) s[i] = s[i + kMiddle] ^ twist(s[i], s[i + 1]);
  for (int i = kWords - kMiddle; i < kWords - 1; ++i)
    s[i] = s[i + kMiddle - kWords] ^ twist(s[i], s[i + 1]);
  s[kWords - 1] = s[kMiddle - 1] ^ twist(s[kWords - 1], s[0]);
  generator.next = 0;
  generator.unread = kWords;
}

inline void draw(MersenneTwister& generator, int64_t n, uint32_t* words) {
  while (n > 0) {
    if (generator.unread == 0) renew(generator);
    const int64_t count = n < generator.unread ? n : generator.unread;
    const uint32_t* const from = generator.state + generator.next;
    for (int64_t i = 0; i < count; ++i) {
      uint32_t y = from[i];
      y ^= y >> 11;
      y ^= (y << 7) & 0x9d2c5680u;
      y ^= (y << 15) & 0xefc60000u;
      words[i] = y ^ (y >> 18);
    }
    generator.next += static_cast<int>(count);
    generator.unread -= static_cast<int>(count);
    words += count;
    n -= count;
  }
}

// A draw is 53 bits, the high 21 of them from the first of two words, as of torch's
// bernoulli_distribution<double>.
template <typename T>
void bernoulli(MersenneTwister& generator, int64_t n, uint64_t below, T value, T* out) {
  constexpr int64_t kRun = 512;
  uint32_t words[2 * kRun];
  const uint32_t high = static_cast<uint32_t>(below >> 32);
  const uint32_t low = static_cast<uint32_t>(below);
  for (int64_t begin = 0; begin < n; begin += kRun) {
    const int64_t count = n - begin < kRun ? n - begin : kRun;
    draw(generator, 2 * count, words);
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t first = words[2 * i] & 0x1fffffu;
      const bool hit = (first < high) | ((first == high) & (words[2 * i + 1] < low));
      out[begin + i] = hit ? value : T(0);
    }
  }
}
