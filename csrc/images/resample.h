// What the kernels of resample-inl.h take.
#pragma once

#include <algorithm>
#include <cstdint>

namespace fastmlp::cpu {

// Places in an image are numbers of 32 bits, 14 of them of the fraction.
inline constexpr int kFractionBits = 14;
inline constexpr int64_t kMostPixels = 4096;  // of a side, so that no sum of these overflows
inline constexpr double kMostShift = 1 << (28 - kFractionBits);  // of a pixel, in pixels

// The variance of the noise: of the sum of four bytes.
inline constexpr double kNoiseVariance = 4 * (256.0 * 256 - 1) / 12;
inline constexpr double kMostNoise = 510;
inline constexpr int kNoiseRun = 16;  // four times as many numbers are made at a time

// The last word of a counter: numbers for different ends never meet.
inline constexpr uint32_t kElasticStream = 0, kAffineStream = 1;

// Where the affine part of a distortion finds the pixel (x, y) of the result.
struct Affine {
  int64_t x, x_down, y, y_down;  // of (0, 0), and the step from row to row: 32 bits of fraction
  int32_t x_right, y_right;      // the step from column to column: kFractionBits

  int32_t row_x(int64_t row) const { return at(x + row * x_down); }
  int32_t row_y(int64_t row) const { return at(y + row * y_down); }

  // Half a 256th more, as the fraction is cut after eight bits. Beyond 2^30 all of a row is far
  // outside, whatever is added to it.
  static int32_t at(int64_t value) {
    const int64_t near = (value >> (32 - kFractionBits)) + (1 << (kFractionBits - 9));
    return static_cast<int32_t>(std::clamp<int64_t>(near, -(1 << 30), 1 << 30));
  }
};

// Displacements beside the affine part, [height, width] and some more that are read to no end.
struct Shifts {
  const float *x, *y;  // null: none
  float unit;          // times this they are places
};

// An image in the form that it is read in: for each place, the pixels (y, x), (y + 1, x),
// (y, x + 1), (y + 1, x + 1) in a word, from the lowest byte on, for -2 <= y <= height and
// -2 <= x <= width, in rows that lie width + kFrame apart. The first and the last of either are
// black: what lies outside is read there.
inline constexpr int kFrame = 4;
struct Neighbours {
  uint8_t* bytes;   // scratch, (height + 4) · (width + 4)
  uint16_t* pairs;  // scratch, (height + 3) · (width + 4) + 1
  uint32_t* words;  // (height + 3) · (width + 4)
};

}  // namespace fastmlp::cpu
