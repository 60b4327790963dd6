// Views of matrices, their division into tiles, and the memory under them.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastmlp::cpu {

// From row to row and from column to column, in elements.
struct Strides {
  int64_t row_stride = 0;
  int64_t col_stride = 1;
};

template <typename T>
struct Matrix {
  const T* data = nullptr;
  int64_t row_stride = 0;
  int64_t col_stride = 1;

  Matrix() = default;
  Matrix(const T* data, int64_t row_stride, int64_t col_stride)
      : data(data), row_stride(row_stride), col_stride(col_stride) {}
  Matrix(const T* data, Strides strides) : Matrix(data, strides.row_stride, strides.col_stride) {}

  Matrix at(int64_t i, int64_t j) const {
    return {data + i * row_stride + j * col_stride, row_stride, col_stride};
  }
};

// c[m, n] = a[m, k] · b[k, n]; c contiguous, b contiguous along its rows (col_stride 1) or its
// columns (row_stride 1).
struct ProductShape {
  int64_t m = 0, n = 0, k = 0;
  Strides a, b;
};

// Where a product's matrices lie. scale: of a product that is added to c.
template <typename T>
struct ProductMemory {
  const T* a = nullptr;
  const T* b = nullptr;
  T* c = nullptr;
  T scale = 1;
};

// Bytes of one core's second-level cache, by which forms and blocks of products are chosen: what
// FASTMLP_L2_BYTES says, what the system tells, or half a megabyte, which nearly every processor of
// the last decade has. Throws std::invalid_argument where the variable holds no such number.
int64_t second_level_cache_bytes();
// For the products that are planned after it; 0: as at the start.
void set_second_level_cache_bytes(int64_t bytes);

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
  int64_t longest() const { return size_ + (longer_ > 0); }
  // The longer runs first: no division, for what is asked of every tile.
  int64_t begin(int64_t part) const { return part * size_ + std::min(part, longer_); }
  // The first run after `part` that is shorter than it, or the end.
  int64_t end_of_equals(int64_t part) const { return part < longer_ ? longer_ : parts_; }
  // The longer runs spread among the others, so that few runs divide evenly between threads as
  // well.
  int64_t spread(int64_t part) const { return part * total_ / parts_; }

 private:
  int64_t total_ = 0, parts_ = 0, size_ = 0,
          longer_ = 0;  // `longer_` runs hold one more than size_
};

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Buffers begin at multiples of 64 bytes, a cache line and the widest vector.
template <typename T>
int64_t aligned(int64_t elements) {
  constexpr int64_t unit = 64 / sizeof(T);
  return divide_up(elements, unit) * unit;
}

}  // namespace fastmlp::cpu
