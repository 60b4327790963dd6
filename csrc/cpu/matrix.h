// Views of matrices, their division into tiles, and the memory under them.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace fastmlp::cpu {

template <typename T>
struct Matrix {
  const T* data = nullptr;
  int64_t row_stride = 0;
  int64_t col_stride = 1;

  Matrix at(int64_t i, int64_t j) const {
    return {data + i * row_stride + j * col_stride, row_stride, col_stride};
  }
};

// Of one core, where the system tells; else half a megabyte, which nearly every processor of the
// last decade has.
inline int64_t second_level_cache_bytes() {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return 512 << 10;
}

// 0 … total cut into `parts` runs that differ by one at most: 50 rows are 7 tiles of 7 or 8, not 6
// of 8 and one of 2.
class EvenParts {
 public:
  EvenParts() = default;
  EvenParts(int64_t total, int64_t parts)
      : total_(total),
        parts_(parts),
        size_(parts ? total / parts : 0),
        longer_(parts ? total % parts : 0) {}
  int64_t count() const { return parts_; }
  int64_t total() const { return total_; }
  int64_t size() const { return size_; }  // of the shorter runs
  // The longer runs first: no division, for what is asked of every tile.
  int64_t begin(int64_t part) const { return part * size_ + std::min(part, longer_); }
  // The longer runs spread among the others, so that few runs divide evenly between threads as
  // well.
  int64_t spread(int64_t part) const { return part * total_ / parts_; }

 private:
  int64_t total_ = 0, parts_ = 0, size_ = 0,
          longer_ = 0;  // `longer_` runs hold one more than size_
};

// Longer sums are added up in blocks of at most so many terms: a tile's rows of a fill a quarter of
// the first-level cache, and the error of one long chain of additions stays as small as that of the
// BLAS libraries.
inline constexpr int64_t kTileDepth = 384;

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Buffers begin at multiples of 64 bytes, a cache line and the widest vector.
template <typename T>
int64_t aligned(int64_t elements) {
  constexpr int64_t unit = 64 / sizeof(T);
  return divide_up(elements, unit) * unit;
}

}  // namespace fastmlp::cpu
