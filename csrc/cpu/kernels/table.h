// What an instruction set offers: a table of function pointers that kernels_<isa>.cpp fills from
// the algorithms in *-inl.h.
#pragma once

#include <cstdint>
#include <limits>

#include "cpu/isa/tuning.h"
#include "cpu/kernels/mersenne.h"
#include "images/resample.h"
#include "network/losses.h"
#include "network/network.h"
#include "network/optimizers.h"

namespace fastmlp::cpu {

// What tunings may ask for.
inline constexpr int kMaxTileRows = 8;
inline constexpr int kMaxTileVectors = 6;
inline constexpr int kMaxDotTile = 5;
inline constexpr int kMaxRowTile = 16;
inline constexpr int64_t kMaxBlockDepth = 1024;

inline constexpr int kMostActivations = 32, kMostLosses = 16, kMostOptimizers = 16;

// All matrices are row-major with a stride from row to row, in elements.
template <typename T>
struct Kernels {
  // c[rows, n] = a · b, or += scale · a · b where accumulate, over a depth of k, or over the k
  // columns of a and rows of b that are listed. a is read element by element at any two strides, b
  // by whole vectors along its rows; `vectors` covers the n columns. So do `tiles` of them one
  // below the other, whose a begin a_tile_stride apart, and whose c follow one another.
  using GemmTiles = void (*)(int64_t tiles, int64_t a_tile_stride, int64_t k, const int32_t* list,
                             const T* a, int64_t a_row_stride, int64_t a_col_stride, const T* b,
                             int64_t b_stride, T* c, int64_t c_stride, int64_t n, bool accumulate,
                             T scale);
  // c[rows, columns] = a · bᵀ, or +=, both operands read by whole vectors along k.
  using DotTile = void (*)(int64_t k, const T* a, int64_t a_stride, const T* b, int64_t b_stride,
                           T* c, int64_t c_stride, bool accumulate);
  // z[rows, n] += bias (null: zero), y = activation(z). Where z == y only y is kept.
  using Activate = void (*)(int64_t rows, int64_t n, T* z, T* y, int64_t stride, const T* bias,
                            const double* parameters);
  // grad[rows, n] = incoming[rows, n] * activation'(saved), with saved as its ActivationInfo tells.
  using ActivateBackward = void (*)(int64_t rows, int64_t n, const T* incoming,
                                    int64_t incoming_stride, const T* saved, int64_t saved_stride,
                                    T* grad, int64_t grad_stride, const double* parameters);
  // z[rows, n] = the norm of x · weight, where it has one; n elements from row to row of z.
  using NormRows = void (*)(int64_t rows, int64_t n, const T* x, int64_t x_stride, const T* weight,
                            double eps, T* z);
  // From dz its gradient of x (null: not wanted), and the terms of the weight's, where it has one,
  // whose sums over the rows it is; n elements from row to row of both.
  using NormBackward = void (*)(int64_t rows, int64_t n, const T* x, int64_t x_stride,
                                const T* weight, double eps, const T* dz, int64_t dz_stride, T* dx,
                                T* terms);
  using LossRows = LossResult (*)(const Loss& loss, int64_t begin, int64_t end);
  using UpdatePiece = void (*)(int64_t rows, int64_t n, int64_t stride, int64_t begin,
                               const Update& update, double scale);

  const char* isa;
  int width;  // elements in a vector
  Tuning tuning;
  GemmTiles gemm[kMaxTileRows + 1][kMaxTileVectors + 1];  // [rows][vectors]; null outside of all
  DotTile dot[kMaxDotTile + 1][kMaxRowTile + 1];          // [rows][columns]
  // c[rows, n] = a[rows] · b[n], or += scale · a · b.
  void (*outer_product)(int64_t rows, int64_t n, const T* a, int64_t a_stride, const T* b, T* c,
                        int64_t c_stride, bool accumulate, T scale);
  Activate activate[kMostActivations];
  ActivateBackward activate_backward[kMostActivations];
  NormRows norm[kNorms];  // null of those by columns
  NormBackward norm_backward[kNorms];
  // Of each column of x[rows, n], the mean and the variance.
  void (*column_statistics)(int64_t rows, int64_t n, const T* x, int64_t stride, T* mean,
                            T* variance);
  // factor[n] = weight / sqrt(variance + eps), and inverse[n] = 1 / sqrt(variance + eps).
  void (*column_factors)(int64_t n, const T* weight, const T* variance, double eps, T* factor,
                         T* inverse);
  // z[rows, n] = (x - mean[n]) · factor[n] (both null: x).
  void (*center)(int64_t rows, int64_t n, const T* x, int64_t x_stride, const T* mean,
                 const T* factor, T* z, int64_t z_stride);
  // sums[n] = the sums of dz over the rows, products[n] = those of dz · (x - mean).
  void (*column_products)(int64_t rows, int64_t n, const T* dz, int64_t dz_stride, const T* x,
                          int64_t x_stride, const T* mean, T* sums, T* products);
  // dx[rows, n] = (dz - offset[n] + (x - mean[n]) · slope[n]) · factor[n]; offset and slope null:
  // without both; factor null: without it.
  void (*center_backward)(int64_t rows, int64_t n, const T* dz, int64_t dz_stride, const T* x,
                          int64_t x_stride, const T* mean, const T* offset, const T* slope,
                          const T* factor, T* dx, int64_t dx_stride);
  // z[rows, n] = x where x > 0, else x · weight[n], or [1] where it is shared.
  void (*prelu)(int64_t rows, int64_t n, const T* x, int64_t x_stride, const T* weight, bool shared,
                T* z, int64_t z_stride);
  // sums[n] = the weight's gradient, were there one for each column.
  void (*prelu_sums)(int64_t rows, int64_t n, const T* dz, int64_t dz_stride, const T* x,
                     int64_t x_stride, T* sums);
  void (*prelu_backward)(int64_t rows, int64_t n, const T* dz, int64_t dz_stride, const T* x,
                         int64_t x_stride, const T* weight, bool shared, T* dx, int64_t dx_stride);
  // Rows begin … end - 1, 64 at most: their gradients are written, the sum of their losses
  // returned.
  LossRows loss[kMostLosses];
  // [rows, n] of one parameter from element `begin` on, rows a stride apart.
  UpdatePiece update[kMostOptimizers];
  // c[rows, n] = a · factor + addend (null: ones, zeros). factor lies like c.
  void (*combine)(int64_t rows, int64_t n, const T* a, int64_t a_stride, const T* factor,
                  const T* addend, int64_t addend_stride, T* c, int64_t c_stride);
  // out[n] = sum over the rows of a[rows, n], pairwise.
  void (*column_sums)(int64_t rows, int64_t n, const T* a, int64_t stride, T* out);
  // packed[k, n] = sourceᵀ for source[n, k]; packed rows lie packed_stride apart, and from n to
  // `filled` they are set to zero.
  void (*pack_transposed)(int64_t n, int64_t k, const T* source, int64_t stride, T* packed,
                          int64_t packed_stride, int64_t filled);
  // packed[k, n] = source[k, n], zero from n to packed_stride.
  void (*pack_rows)(int64_t n, int64_t k, const T* source, int64_t stride, T* packed,
                    int64_t packed_stride);
  // marks[n] = x[n] != background, rest[n] = x[n] - background (null: not wanted). NaN differs from
  // everything.
  void (*separate)(int64_t n, const T* x, T background, uint8_t* marks, T* rest);
  // to[n] = scale · from[n] + shift.
  void (*convert)(int64_t n, const uint8_t* from, T scale, T shift, T* to);
  // out[n] = value where a uniform number of 53 bits is below `below`, else zero.
  void (*bernoulli)(MersenneTwister& generator, int64_t n, uint64_t below, T value, T* out);
  // out[n] = noise that belongs to the key and to the image's number, whole numbers of variance
  // kNoiseVariance; up to the next multiple of 4 · kNoiseRun is written.
  void (*noise)(uint64_t key, uint64_t image, int64_t n, float* out);
  void (*pack_neighbours)(int64_t height, int64_t width, const uint8_t* image,
                          const Neighbours& packed);
  // out[height, width]: pixels interpolated bilinearly between four neighbours, at places rounded
  // to 256ths. `wide` is scratch for height · width + `width of a vector` words.
  void (*resample)(int64_t height, int64_t width, const Affine& affine, const Shifts& shifts,
                   const uint32_t* neighbours, uint32_t* wide, uint8_t* out);
  // `steps` rounds of kPeakChains independent multiply-adds on registers, to measure the machine's
  // peak; returns their sum.
  T (*multiply_add)(int64_t steps);
};
inline constexpr int kPeakChains = 12;

// Each may be called only where isa.h says that its instruction set is available.
template <typename T>
const Kernels<T>& generic_kernels();
template <typename T>
const Kernels<T>& avx2_kernels();
template <typename T>
const Kernels<T>& avx512_kernels();

}  // namespace fastmlp::cpu
