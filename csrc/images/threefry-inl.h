// Threefry-4x32-20 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// 2011): four random words from a key of two words, here, and a counter of four. A number belongs
// to its counter, so it is the same whichever thread and whatever vectors compute it. Included
// inside a namespace, once; Word is uint32_t or a vector of them.

template <int left, typename Word>
FASTMLP_INLINE Word rotate(Word word) {
  return word << left | word >> (32 - left);
}

template <int left, int right, typename Word>
FASTMLP_INLINE void mix(Word& a, Word& b, Word& c, Word& d) {
  a += b;
  b = rotate<left>(b) ^ a;
  c += d;
  d = rotate<right>(d) ^ c;
}

template <typename Word>
FASTMLP_INLINE void threefry(uint64_t key, Word (&counter)[4]) {
  auto& [a, b, c, d] = counter;
  const auto low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
  const uint32_t keys[5] = {low, high, 0, 0, low ^ high ^ 0x1bd11bdau};
  const auto add_keys = [&](uint32_t round) {
    a += keys[round % 5];
    b += keys[(round + 1) % 5];
    c += keys[(round + 2) % 5];
    d += keys[(round + 3) % 5] + round;
  };
  add_keys(0);
  FASTMLP_UNROLL
  for (uint32_t round = 1; round <= 5; round += 2) {
    mix<10, 26>(a, b, c, d);
    mix<11, 21>(a, d, c, b);
    mix<13, 27>(a, b, c, d);
    mix<23, 5>(a, d, c, b);
    add_keys(round);
    if (round == 5) break;
    mix<6, 20>(a, b, c, d);
    mix<17, 11>(a, d, c, b);
    mix<25, 10>(a, b, c, d);
    mix<18, 20>(a, d, c, b);
    add_keys(round + 1);
  }
}
