// Images read at displaced places. Included inside a target region, after vec_<isa>.h. All is done
// in integers, or in floats that hold integers: every instruction set gives the same bits.

#include "images/threefry-inl.h"

constexpr int kLanes = Vec<float>::width;
typedef float Reals __attribute__((vector_size(4 * kLanes)));
typedef int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Words __attribute__((vector_size(4 * kLanes)));

template <typename Vector>
FASTMLP_INLINE void store(void* to, Vector vector) {
  std::memcpy(to, &vector, sizeof vector);
}

FASTMLP_INLINE Integers first_integers() {
  Integers result;
  FASTMLP_UNROLL
  for (int i = 0; i < kLanes; ++i) result[i] = i;
  return result;
}

FASTMLP_INLINE Integers clamp(Integers value, int32_t least, int32_t most) {
  const Integers low = Integers{} + least, high = Integers{} + most;
  value = value < low ? low : value;
  return value > high ? high : value;
}

// The sum of a word's four bytes less its mean: of variance kNoiseVariance.
FASTMLP_INLINE Reals byte_sum(Words word) {
  const Words pairs = (word & 0xff00ffu) + (word >> 8 & 0xff00ffu);
  return __builtin_convertvector(Integers((pairs & 0xffffu) + (pairs >> 16)) - 510, Reals);
}

// The words of kNoiseRun counters lie as they would in the widest vectors: first words, second …
inline void noise(uint64_t key, uint64_t image, int64_t n, float* out) {
  static_assert(kNoiseRun % kLanes == 0);
  const auto first = Words(first_integers());
  for (int64_t begin = 0; begin < n; begin += 4 * kNoiseRun) {
    FASTMLP_UNROLL
    for (int i = 0; i < kNoiseRun; i += kLanes) {
      Words words[4] = {first + static_cast<uint32_t>(begin / 4 + i),
                        Words{} + static_cast<uint32_t>(image),
                        Words{} + static_cast<uint32_t>(image >> 32), Words{} + kElasticStream};
      threefry(key, words);
      FASTMLP_UNROLL
      for (int j = 0; j < 4; ++j) store(out + begin + j * kNoiseRun + i, byte_sum(words[j]));
    }
  }
}

inline void pack_neighbours(int64_t height, int64_t width, const uint8_t* __restrict image,
                            const Neighbours& packed) {
  const int64_t stride = width + kFrame, total = (height + kFrame - 1) * stride;
  uint8_t* __restrict bytes = packed.bytes;
  uint16_t* __restrict pairs = packed.pairs;
  uint32_t* __restrict words = packed.words;
  std::memset(bytes, 0, total + stride);
  for (int64_t y = 0; y < height; ++y)
    std::memcpy(bytes + (y + 2) * stride + 2, image + y * width, width);
  for (int64_t i = 0; i < total; ++i)
    pairs[i] = static_cast<uint16_t>(bytes[i] | bytes[i + stride] << 8);
  pairs[total] = 0;
  for (int64_t i = 0; i < total; ++i)
    words[i] = pairs[i] | static_cast<uint32_t>(pairs[i + 1]) << 16;
}

// Whole pixels and 256ths of them.
struct Places {
  Integers whole;
  Words part;
};

FASTMLP_INLINE Places places(Integers fixed, const float* shift, float unit) {
  if (shift) {
    Reals shifts;
    std::memcpy(&shifts, shift, sizeof shifts);
    fixed += __builtin_convertvector(shifts * unit, Integers);
  }
  return {fixed >> kFractionBits, Words(fixed >> (kFractionBits - 8) & 255)};
}

template <bool elastic>
void resample_all(int64_t height, int64_t width, const Affine& affine, const Shifts& shifts,
                  const uint32_t* words, uint32_t* __restrict wide, uint8_t* __restrict out) {
  const auto first = first_integers();
  const auto stride = static_cast<int32_t>(width + kFrame);
  for (int64_t y = 0; y < height; ++y) {
    Integers at_x = affine.row_x(y) + first * affine.x_right;
    Integers at_y = affine.row_y(y) + first * affine.y_right;
    for (int64_t x = 0; x < width; x += kLanes) {
      const int64_t i = y * width + x;
      const Places h = places(at_x, elastic ? shifts.x + i : nullptr, shifts.unit);
      const Places v = places(at_y, elastic ? shifts.y + i : nullptr, shifts.unit);
      const Integers row = clamp(v.whole, -2, static_cast<int32_t>(height)) + 2;
      const Integers column = clamp(h.whole, -2, static_cast<int32_t>(width)) + 2;
      const auto word = Words(Vec<float>::gather(words, row * stride + column));
      // Both columns at once, in the two halves of a word: neither grows beyond 255 · 256.
      const Words columns = (word & 0xff00ffu) * (256 - v.part) + (word >> 8 & 0xff00ffu) * v.part;
      const Words pixel = (columns & 0xffffu) * (256 - h.part) + (columns >> 16) * h.part;
      // Beyond the row's end is the next one's beginning, which is not yet written.
      store(wide + i, Words((pixel + 0x8000u) >> 16));
      at_x += affine.x_right * kLanes;
      at_y += affine.y_right * kLanes;
    }
  }
  for (int64_t i = 0; i < height * width; ++i) out[i] = static_cast<uint8_t>(wide[i]);
}

inline void resample(int64_t height, int64_t width, const Affine& affine, const Shifts& shifts,
                     const uint32_t* words, uint32_t* wide, uint8_t* out) {
  (shifts.x ? resample_all<true> : resample_all<false>)(height, width, affine, shifts, words, wide,
                                                        out);
}
