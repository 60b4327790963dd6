// Deskewing and random distortions of images.
#pragma once

#include <cstdint>

namespace fastmlp::cpu {

struct Images {
  int64_t count, height, width;
  const uint8_t* from;  // [count, height, width]
  uint8_t* to;          // likewise, elsewhere
};

// A field of displacements is rows · noise · columns, with independent noise of variance
// kNoiseVariance and absolute values up to kMostNoise. The factors hold whole numbers, so small
// that no sum of either product exceeds 2^24: those of a row of `rows` sum up to 2^24 / kMostNoise
// at most, those of a column of `columns` to 2^24 / kMostHalf, as rows · noise is divided by
// 2^24 / kMostHalf and rounded. So all sums are exact, in any order, with or without multiply-adds.
inline constexpr int32_t kMostHalf = 4096;
struct Elastic {
  const float* rows;     // [height, row_rank]; null: no displacements
  const float* columns;  // [column_rank, width]
  int64_t row_rank, column_rank;
  double unit;  // times this the field is in pixels
};

// Amounts are those of fastmlp.data.distort, angles in radians.
struct Distortion {
  double rotation, scale, shear, translation;
  Elastic elastic;
  uint64_t key;
};

// The result does not depend on the number of threads.
void deskew(const Images& images, int max_threads);
void distort(const Images& images, const Distortion& distortion, int max_threads);

}  // namespace fastmlp::cpu
