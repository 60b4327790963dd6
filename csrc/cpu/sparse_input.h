// The products of a first layer with an input that is mostly one value.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/matrix.h"
#include "cpu/record.h"
#include "cpu/threads.h"

namespace fastmlp::cpu {

// x[m, k] = background + s, where most of s is zero: pixels, indicators, counts of words as they
// are, or what a normalisation makes of their zeros. Then
//
//   x · Wᵀ  = s · Wᵀ  + background · (W · 1)
//   dzᵀ · x = dzᵀ · s + background · (dzᵀ · 1)
//
// and a step of a tile is left out where all of s that it would read is zero. Where a weight or a
// gradient is not finite the zeros count, for 0 · inf is NaN: such tiles are computed whole, from x
// itself.
//
// Every element is summed in an order that depends on the shape, x and the processor alone.
template <typename T>
class SparseInput {
 public:
  SparseInput() = default;

  // Whether a sample of x says that it pays to look at all of it. Only then may the rest be called.
  bool likely() const { return likely_; }

  // Shared by all members: s with a row of the background after its last, and the lists.
  int64_t shared_elements() const {
    if (!likely_) return 0;
    return aligned<T>(divide_up(lists() * static_cast<int64_t>(sizeof(int32_t)), sizeof(T))) +
           (background_ != 0 ? (m_ + 1) * k_ : 0);
  }
  void place(T* shared) {
    counts_ = reinterpret_cast<int32_t*>(shared);
    if (background_ == 0) return;
    own_ = shared + shared_elements() - (m_ + 1) * k_;
    s_ = {own_, k_, 1};
  }

 protected:
  // parts: of what the products sum over, runs of kTileDepth at most.
  SparseInput(const Kernels<T>& kernels, int64_t m, int64_t k, Matrix<T> x, int64_t n,
              EvenParts tiles, EvenParts parts)
      : kernels_(&kernels), m_(m), k_(k), n_(n), x_(x), s_(x), tiles_(tiles), parts_(parts) {
    if (m >= kLeastRows && k >= kLeastFeatures && n >= kernels.width) sample();
  }

  void subtract_background(int64_t row, int64_t end) const {
    if (background_ == 0) return;
    for (; row < end; ++row)
      kernels_->subtract(k_, x_.at(row, 0).data, background_, own_ + row * k_);
  }

  // The steps of one tile that count, in one part of the sum, from the part's beginning.
  int32_t* list(int64_t tile, int64_t part) const {
    return counts_ + tiles_.count() * parts_.count() + tile * (parts_.total() + 1) +
           parts_.begin(part);
  }
  int32_t& count(int64_t tile, int64_t part) const { return counts_[tile * parts_.count() + part]; }
  // The fraction of all steps.
  double listed() const {
    int64_t steps = 0;
    for (int64_t i = 0; i < tiles_.count() * parts_.count(); ++i) steps += counts_[i];
    return static_cast<double>(steps) / static_cast<double>(tiles_.count() * parts_.total());
  }

  static bool finite(int64_t n, const T* a) {
    return std::all_of(a, a + n, [](T value) { return std::isfinite(value); });
  }

  const Kernels<T>* kernels_ = nullptr;
  int64_t m_ = 0, k_ = 0, n_ = 0;  // n: the layer's outputs
  Matrix<T> x_, s_;
  EvenParts tiles_, parts_;
  T background_ = 0;

 private:
  static constexpr int64_t kLeastRows = 16, kLeastFeatures = 64;
  static constexpr int kSamples = 64;

  int64_t lists() const {
    return tiles_.count() * parts_.count() + tiles_.count() * (parts_.total() + 1);
  }

  // The most frequent of some elements all over x, if it is more than half of them (Boyer and Moore
  // 1981).
  void sample() {
    T values[kSamples];
    const int64_t step = (m_ * k_ - 1) / (kSamples - 1);
    int votes = 0;
    for (int i = 0; i < kSamples; ++i) {
      values[i] = *x_.at(i * step / k_, i * step % k_).data;
      if (votes == 0) background_ = values[i];
      votes += values[i] == background_ ? 1 : -1;
    }
    likely_ = std::isfinite(background_) &&
              2 * std::count(values, values + kSamples, background_) > kSamples;
  }

  bool likely_ = false;
  T* own_ = nullptr;
  int32_t* counts_ = nullptr;  // and, after them, the lists
};

// z[m, n] = x · Wᵀ, by tiles of rows of x and of columns of W.
template <typename T>
class SparseForward : public SparseInput<T> {
 public:
  SparseForward() = default;
  SparseForward(const Kernels<T>& kernels, int64_t m, int64_t n, int64_t k, Matrix<T> x)
      : SparseInput<T>(kernels, m, k, x, n, EvenParts(m, divide_up(m, kernels.tall.rows)),
                       EvenParts(k, divide_up(k, kTileDepth))) {}

  int64_t buffer_elements() const {
    return this->likely() ? (kTileDepth + 3) * this->kernels_->tall.vectors * this->kernels_->width
                          : 0;
  }

  // Looks at all of x. All members have to wait before they go on.
  void scan(Member member) const {
    for (int64_t tile = member.begin(tiles_.count()); tile < member.end(tiles_.count()); ++tile) {
      const int64_t i = tiles_.begin(tile), rows = tiles_.begin(tile + 1) - i;
      int32_t marks[kTileDepth];
      for (int64_t part = 0; part < parts_.count(); ++part) {
        const int64_t k0 = parts_.begin(part), depth = parts_.begin(part + 1) - k0;
        this->count(tile, part) = static_cast<int32_t>(
            kernels_->list_columns(rows, depth, x_.at(i, k0).data, x_.row_stride, background_,
                                   marks, this->list(tile, part)));
      }
      this->subtract_background(i, i + rows);
    }
  }
  bool pays() const { return this->listed() < 0.7; }

  // This member's share. done(row, rows, column, columns, bias) is called for pieces of z as soon
  // as they are whole; the bias includes the background's part, and may be null.
  template <typename Done>
  void compute(Member member, Matrix<T> weight, const T* bias, T* buffer, T* z,
               const Done& done) const {
    const int64_t width = kernels_->width, vectors = divide_up(n_, width);
    const int64_t first = member.begin(vectors), own = member.end(vectors) - first;
    const EvenParts panels(own, divide_up(own, kernels_->tall.vectors));
    const int64_t widest = kernels_->tall.vectors * width;
    T *const part_sums = buffer, *const sums = buffer + widest, *const offset = sums + widest;
    T* const panel = offset + widest;
    for (int64_t top = 0; top < tiles_.count(); top += kBlockTiles) {
      const int64_t bottom = std::min(tiles_.count(), top + kBlockTiles);
      const int64_t i0 = tiles_.begin(top), rows = tiles_.begin(bottom) - i0;
      for (int64_t p = 0; p < panels.count(); ++p) {
        const int64_t j = (first + panels.begin(p)) * width;
        const int64_t padded = (panels.begin(p + 1) - panels.begin(p)) * width;
        const int64_t columns = std::min(n_ - j, padded);
        std::fill(sums, sums + columns, T(0));
        for (int64_t part = 0; part < parts_.count(); ++part) {
          const int64_t k0 = parts_.begin(part), depth = parts_.begin(part + 1) - k0;
          const Matrix<T> w = weight.at(j, k0);
          kernels_->pack_transposed(columns, depth, w.data, w.row_stride, panel, padded, padded);
          kernels_->column_sums(depth, columns, panel, padded, part_sums);
          const bool whole = !this->finite(columns, part_sums);
          if (!whole)
            for (int64_t c = 0; c < columns; ++c) sums[c] += part_sums[c];
          record_kernel<T>("listed", kernels_->isa, kernels_->tall.rows, widest);
          for (int64_t tile = top; tile < bottom; ++tile) {
            const int64_t i = tiles_.begin(tile);
            const Matrix<T> a = whole ? x_.at(i, k0) : s_.at(i, k0);
            kernels_->gemm[tiles_.begin(tile + 1) - i][divide_up(columns, width)](
                whole ? depth : this->count(tile, part), whole ? nullptr : this->list(tile, part),
                a.data, a.row_stride, 1, panel, padded, z + i * n_ + j, n_, columns, part > 0,
                T(1));
          }
        }
        const T* shifted = bias ? bias + j : nullptr;
        if (background_ != 0) {
          for (int64_t c = 0; c < columns; ++c)
            offset[c] = (bias ? bias[j + c] : T(0)) + background_ * sums[c];
          shifted = offset;
        }
        done(i0, rows, j, columns, shifted);
      }
    }
  }

 private:
  using SparseInput<T>::kernels_;
  using SparseInput<T>::n_;
  using SparseInput<T>::x_;
  using SparseInput<T>::s_;
  using SparseInput<T>::tiles_;
  using SparseInput<T>::parts_;
  using SparseInput<T>::background_;

  // Tiles that one packed panel serves: their part of s stays in the second-level cache.
  static constexpr int64_t kBlockTiles = 32;
};

// dW[n, k] = dzᵀ · x, by tiles of rows of dW and of columns of x, and db = dzᵀ · 1.
template <typename T>
class SparseGradient : public SparseInput<T> {
 public:
  SparseGradient() = default;
  SparseGradient(const Kernels<T>& kernels, int64_t m, int64_t n, int64_t k, Matrix<T> x)
      : SparseInput<T>(kernels, m, k, x, n, panels(kernels, k),
                       EvenParts(m, divide_up(m, kTileDepth))),
        rows_(n, divide_up(n, kernels.tall.rows)) {}

  // A block of dz, packed by tiles.
  int64_t buffer_elements() const {
    return this->likely() ? std::min(kBlockTiles, rows_.count()) * tile_elements(kTileDepth) : 0;
  }

  void scan(Member member) const {
    for (int64_t p = member.begin(tiles_.count()); p < member.end(tiles_.count()); ++p) {
      const int64_t j = column(p);
      for (int64_t part = 0; part < parts_.count(); ++part) {
        const int64_t m0 = parts_.begin(part), depth = parts_.begin(part + 1) - m0;
        this->count(p, part) = static_cast<int32_t>(
            kernels_->list_rows(depth, std::min(k_, column(p + 1)) - j, x_.at(m0, j).data,
                                x_.row_stride, background_, this->list(p, part)));
      }
    }
    this->subtract_background(member.begin(m_), member.end(m_));
    if (background_ == 0) return;
    // The row of the background, a step of every tile in the last part.
    if (member.index == 0) std::fill_n(const_cast<T*>(s_.at(m_, 0).data), k_, background_);
  }
  bool pays() const { return this->listed() < 0.9; }

  // The rows of dW that are this member's.
  int64_t begin(Member member) const { return rows_.begin(member.begin(rows_.count())); }
  int64_t end(Member member) const { return rows_.begin(member.end(rows_.count())); }

  // This member's share, or with `add` of c += scale · dW, and what belongs to it of db[n].
  // done(row, rows, column, columns) is called for pieces of dW as soon as they are whole.
  template <typename Done>
  void compute(Member member, Matrix<T> dz, T* buffer, T* c, bool add, T scale, T* bias_gradient,
               const Done& done) const {
    const int64_t first = member.begin(rows_.count()), last = member.end(rows_.count());
    if (first == last) return;
    const int64_t j0 = begin(member);
    kernels_->column_sums(m_, end(member) - j0, dz.at(j0, 0).data, dz.col_stride,
                          bias_gradient + j0);
    for (int64_t part = 0; part < parts_.count(); ++part) {
      for (int64_t top = first; top < last; top += kBlockTiles)
        compute_block(part, top, std::min(last, top + kBlockTiles), dz, buffer, c, add, scale,
                      bias_gradient, done);
    }
  }

 private:
  using SparseInput<T>::kernels_;
  using SparseInput<T>::m_;
  using SparseInput<T>::k_;
  using SparseInput<T>::x_;
  using SparseInput<T>::s_;
  using SparseInput<T>::tiles_;
  using SparseInput<T>::parts_;
  using SparseInput<T>::background_;

  static constexpr int64_t kBlockTiles = 64;

  static EvenParts panels(const Kernels<T>& kernels, int64_t k) {
    const int64_t vectors = divide_up(k, kernels.width);
    return EvenParts(vectors, divide_up(vectors, kernels.tall.vectors));
  }
  int64_t column(int64_t panel) const { return tiles_.begin(panel) * kernels_->width; }
  int64_t tile_elements(int64_t depth) const { return (depth + 1) * kernels_->tall.rows; }

  template <typename Done>
  void compute_block(int64_t part, int64_t top, int64_t bottom, Matrix<T> dz, T* buffer, T* c,
                     bool add, T scale, const T* bias_gradient, const Done& done) const {
    const int64_t rows = kernels_->tall.rows;
    const int64_t m0 = parts_.begin(part), depth = parts_.begin(part + 1) - m0;
    const bool with_background = background_ != 0 && part + 1 == parts_.count();
    for (int64_t tile = top; tile < bottom; ++tile) {
      const int64_t o = rows_.begin(tile), outputs = rows_.begin(tile + 1) - o;
      T* const packed = buffer + (tile - top) * tile_elements(depth);
      kernels_->pack_rows(outputs, depth, dz.at(o, m0).data, dz.col_stride, packed, rows);
      if (with_background) std::copy_n(bias_gradient + o, outputs, packed + depth * rows);
    }
    record_kernel<T>("listed", kernels_->isa, kernels_->tall.rows,
                     kernels_->tall.vectors * kernels_->width);
    for (int64_t p = 0; p < tiles_.count(); ++p) {
      const int64_t j = column(p), columns = std::min(k_, column(p + 1)) - j;
      int32_t* const list = this->list(p, part);
      const int64_t count = this->count(p, part);
      for (int64_t tile = top; tile < bottom; ++tile) {
        const int64_t o = rows_.begin(tile), outputs = rows_.begin(tile + 1) - o;
        const bool whole = !this->finite(outputs, bias_gradient + o);
        const Matrix<T> b = whole ? x_.at(m0, j) : s_.at(m0, j);
        kernels_->gemm[outputs][divide_up(columns, kernels_->width)](
            whole ? depth : count + with_background, whole ? nullptr : list,
            buffer + (tile - top) * tile_elements(depth), 1, rows, b.data, b.row_stride,
            c + o * k_ + j, k_, columns, add || part > 0, scale);
      }
      if (part + 1 == parts_.count())
        done(rows_.begin(top), rows_.begin(bottom) - rows_.begin(top), j, columns);
    }
  }

  EvenParts rows_;  // tiles of dW
};

}  // namespace fastmlp::cpu
