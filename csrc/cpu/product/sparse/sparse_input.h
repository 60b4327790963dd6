// The products of a first layer with an input that is mostly one value.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "cpu/kernels/table.h"
#include "cpu/product/matrix.h"
#include "cpu/product/sparse/panels.h"
#include "cpu/record.h"
#include "cpu/team.h"

namespace fastmlp::cpu {

// What one product sums over: for each tile of its rows the steps that count.
class SparseSteps {
 public:
  SparseSteps() = default;
  SparseSteps(const Tuning& tuning, int64_t rows, int64_t depth)
      : tiles_(rows, divide_up(rows, tuning.few_rows.rows)),
        parts_(depth, divide_up(depth, tuning.block_depth)) {}

  int64_t count() const { return tiles_.count(); }
  int64_t begin(int64_t tile) const { return tiles_.begin(tile); }
  const EvenParts& parts() const { return parts_; }
  int64_t elements() const { return tiles_.count() * (parts_.total() + 2 * parts_.count()); }
  void place(int32_t* begin) { counts_ = begin; }

  int32_t* list(int64_t tile, int64_t part) const {
    return counts_ + tiles_.count() * parts_.count() + tile * (parts_.total() + parts_.count()) +
           parts_.begin(part) + part;
  }
  int64_t count(int64_t tile, int64_t part) const { return counts_[tile * parts_.count() + part]; }
  // write(from, count, list) lists the steps of one part, which begins at `from`, and returns
  // their number; the list has room for one more.
  template <typename Write>
  void list(int64_t tile, const Write& write) const {
    for (int64_t part = 0; part < parts_.count(); ++part) {
      const int64_t from = parts_.begin(part), count = parts_.begin(part + 1) - from;
      counts_[tile * parts_.count() + part] =
          static_cast<int32_t>(write(from, count, list(tile, part)));
    }
  }
  // The fraction of all steps.
  double listed() const {
    int64_t steps = 0;
    for (int64_t i = 0; i < tiles_.count() * parts_.count(); ++i) steps += counts_[i];
    return static_cast<double>(steps) / static_cast<double>(tiles_.count() * parts_.total());
  }

 private:
  EvenParts tiles_, parts_;
  int32_t* counts_ = nullptr;  // and, after them, the lists
};

// What depends on shapes alone.
template <typename T>
class SparsePlan {
 public:
  SparsePlan() = default;
  // Of a layer with n outputs; `threads`: the most that will share its work.
  SparsePlan(const Kernels<T>& kernels, int64_t m, int64_t n, int64_t k, int threads)
      : kernels_(&kernels), m_(m), n_(n), k_(k) {
    if (!fits(kernels, m, n, k)) return;
    rows_ = SparseSteps(kernels.tuning, m, k);
    features_ = SparseSteps(kernels.tuning, k, m);
    panels_ = {kernels, n, k, threads};
    samples_.reserve(kSamples);
    for (int i = 0; i < kSamples; ++i) {
      // By the golden ratio, so that no regular pattern of x meets them.
      const double place = std::fmod(i * 0.6180339887498949, 1.0) * static_cast<double>(m_ * k_);
      const auto element = static_cast<int64_t>(place);
      samples_.push_back({element / k_, element % k_});
    }
  }

  // Whether a layer of these shapes is worth a look at its input.
  static bool fits(const Kernels<T>& kernels, int64_t m, int64_t n, int64_t k) {
    return m >= kLeastRows && k >= kLeastFeatures && n >= kernels.width && m * k <= kMostElements;
  }
  bool fits() const { return !samples_.empty(); }
  const WeightPanels<T>& panels() const { return panels_; }
  // Of each member's own buffer.
  int64_t forward_elements() const { return (kernels_->tuning.block_depth + 4) * widest(); }
  int64_t gradient_elements() const { return kBlockFeatures * widest(); }

 private:
  template <typename>
  friend class SparseInput;

  static constexpr int64_t kLeastRows = 16, kLeastFeatures = 64;
  // Of x: what is scanned takes memory, five bytes an element.
  static constexpr int64_t kMostElements = 1 << 22;
  static constexpr int kSamples = 128;
  static constexpr int64_t kBlockFeatures = 1024;  // of a panel of gradients

  int64_t widest() const { return kernels_->tuning.few_rows.vectors * kernels_->width; }

  const Kernels<T>* kernels_ = nullptr;
  int64_t m_ = 0, n_ = 0, k_ = 0;
  SparseSteps rows_, features_;  // of forward and of the gradient
  WeightPanels<T> panels_;
  struct Place {
    int64_t row, column;
  };
  std::vector<Place> samples_;  // of x
};

// x[m, k] = background + s, where most of s is zero: pixels, indicators, counts of words as they
// are, or what a normalisation makes of their zeros. Then
//
//   x · Wᵀ  = s · Wᵀ  + background · (W · 1)
//   xᵀ · dz = sᵀ · dz + background · (1ᵀ · dz)
//
// and a step of a tile is left out where all of s that it would read is zero. Both products are
// formed with the weight's features as rows, so that a tile reads s for few rows or few features
// only: of MNIST's pixels, 19 % of them drawn on, 38 % of the steps are left at tiles of 4 rows of
// x, 28 % at 4 features; at 8 it would be 45 and 39, and along the features of W as it lies, 48 in
// a tile, 70.
//
// Where a weight or a gradient is not finite, or so large that its sum might not be, the zeros
// count, for 0 · inf is NaN: such vectors of outputs are computed whole, from x itself.
//
// The background adds its own rounding to every element, so it must not be larger than what it is
// the background of.
//
// Every element is summed in an order that depends on the shape, x and the processor alone.
template <typename T>
class SparseInput {
 public:
  SparseInput() = default;
  SparseInput(const SparsePlan<T>& plan, Matrix<T> x)
      : plan_(&plan),
        kernels_(plan.kernels_),
        m_(plan.m_),
        n_(plan.n_),
        k_(plan.k_),
        x_(x),
        s_(x),
        rows_(plan.rows_),
        features_(plan.features_) {
    if (plan.fits()) sample();
  }

  // Whether a sample of x says that it pays to look at all of it. Only then may the rest be called.
  bool likely() const { return likely_; }

  // What all members share: marks, lists, and s with a row of the background after its last.
  int64_t shared_elements() const {
    if (!likely_) return 0;
    return elements_of<int32_t>(rows_.elements() + features_.elements()) +
           elements_of<uint8_t>(m_ * k_ + 8) + (shifts_ ? aligned<T>((m_ + 1) * k_) : 0);
  }
  void place(T* shared) {
    int32_t* const lists = reinterpret_cast<int32_t*>(shared);
    rows_.place(lists);
    features_.place(lists + rows_.elements());
    shared += elements_of<int32_t>(rows_.elements() + features_.elements());
    marks_ = reinterpret_cast<uint8_t*>(shared);
    shared += elements_of<uint8_t>(m_ * k_ + 8);
    if (shifts_) rest_ = shared, s_ = {shared, k_, 1};
  }

  // Looks at x, by rows. All members have to wait before they go on.
  void scan(Member member) const {
    for (int64_t tile = member.begin(rows_.count()); tile < member.end(rows_.count()); ++tile) {
      const int64_t i0 = rows_.begin(tile), i1 = rows_.begin(tile + 1);
      for (int64_t i = i0; i < i1; ++i)
        kernels_->separate(k_, x_.at(i, 0).data, background_, marks_ + i * k_,
                           shifts_ ? rest_ + i * k_ : nullptr);
      rows_.list(tile, [&](int64_t from, int64_t count, int32_t* list) {
        return list_columns(i1 - i0, count, marks_ + i0 * k_ + from, k_, list);
      });
    }
    if (shifts_ && member.index == 0) std::fill_n(rest_ + m_ * k_, k_, background_);
  }
  bool forward_pays() const { return forward_cost(rows_.listed()) < 1; }

  // … and by features, after the rows. All members have to wait again.
  void scan_features(Member member) const {
    for (int64_t tile = member.begin(features_.count()); tile < member.end(features_.count());
         ++tile) {
      const int64_t j = features_.begin(tile), columns = features_.begin(tile + 1) - j;
      features_.list(tile, [&](int64_t from, int64_t count, int32_t* list) {
        const int64_t listed = list_rows(count, columns, marks_ + from * k_ + j, k_, list);
        list[listed] = static_cast<int32_t>(count);  // the row of the background, after the last
        return listed;
      });
    }
  }
  bool gradient_pays() const { return gradient_cost(features_.listed()) < 1; }

  // z[m, n] = x · weightᵀ, this member's columns. kept: where the weight's panels are kept, and are
  // already where they are ahead of it; null: nowhere. done(row, rows, column, columns, bias) is
  // called for pieces of z as soon as they are whole; the bias includes the background's part, and
  // may be null.
  template <typename Done>
  void forward(Member member, Matrix<T> weight, const T* bias, const PanelWeight<T>* panel_weight,
               T* buffer, T* z, const Done& done) const {
    T* const kept = panel_weight ? panel_weight->panels : nullptr;
    const bool packed = panel_weight && panel_weight->is_ahead;
    T *const some_sums = buffer, *const part_sums = some_sums + widest();
    T *const sums = part_sums + widest(), *const shifted = sums + widest();
    for (int64_t p = plan_->panels_.first(member); p < plan_->panels_.last(member); ++p) {
      const int64_t j = plan_->panels_.begin(p), width = plan_->panels_.width(p),
                    columns = plan_->panels_.columns(p);
      std::fill_n(sums, columns, T(0));
      for (int64_t part = 0; part < rows_.parts().count(); ++part) {
        const int64_t k0 = rows_.parts().begin(part), depth = rows_.parts().begin(part + 1) - k0;
        T* const panel = kept ? kept + plan_->panels_.offset(p, k0) : shifted + widest();
        std::fill_n(part_sums, columns, T(0));
        for (int64_t f = 0; f < depth; f += kPackDepth) {
          const int64_t count = std::min(kPackDepth, depth - f);
          T* const to = panel + f * width;
          const Matrix<T> w = weight.at(j, k0 + f);
          if (!packed)
            kernels_->pack_transposed(columns, count, w.data, w.row_stride, to, width, width);
          kernels_->column_sums(count, columns, to, width, some_sums);
          for (int64_t c = 0; c < columns; ++c) part_sums[c] += some_sums[c];
        }
        const double limit = 1.0 / static_cast<double>(rows_.parts().count());
        for_runs(columns, part_sums, limit, [&](int64_t c, int64_t count, bool whole) {
          for (int64_t i = c; i < c + count && !whole; ++i) sums[i] += part_sums[i];
          const Matrix<T> a = whole ? x_.at(0, k0) : s_.at(0, k0);
          for (int64_t tile = 0; tile < rows_.count(); ++tile) {
            const int64_t i = rows_.begin(tile);
            multiply(rows_, tile, part, whole, 0, a.at(i, 0), Matrix<T>{panel + c, width, 1}, count,
                     z + i * n_ + j + c, n_, part > 0, T(1));
          }
        });
      }
      if (shifts_) {
        for (int64_t c = 0; c < columns; ++c)
          shifted[c] = (bias ? bias[j + c] : T(0)) + background_ * sums[c];
        done(0, m_, j, columns, shifted);
      } else {
        done(0, m_, j, columns, bias ? bias + j : nullptr);
      }
    }
  }

  // The outputs whose gradients are this member's.
  int64_t begin(Member member) const { return plan_->panels_.begin(plan_->panels_.first(member)); }
  int64_t end(Member member) const { return plan_->panels_.begin(plan_->panels_.last(member)); }

  // weight[n, k] = dW = dzᵀ · x, this member's rows. dz[m, n] has a row more, in which the member
  // has to write its columns of db = dzᵀ · 1 before. done(row, rows) is called for rows of dW as
  // soon as they are whole.
  //
  // With kept, the panels that forward has kept: kept += scale · dW, and weight = kept, or null
  // where that can wait.
  template <typename Done>
  void gradient(Member member, Matrix<T> dz, T* kept, T scale, T* buffer, T* weight,
                const Done& done) const {
    for (int64_t p = plan_->panels_.first(member); p < plan_->panels_.last(member); ++p) {
      const int64_t j = plan_->panels_.begin(p), width = plan_->panels_.width(p),
                    columns = plan_->panels_.columns(p);
      for (int64_t tile = 0; tile < features_.count();) {
        const int64_t from = features_.begin(tile), first_tile = tile;
        T* const panel = kept ? kept + plan_->panels_.offset(p, from) : buffer;
        while (tile < features_.count() && features_.begin(tile + 1) - from <= kBlockFeatures)
          ++tile;
        for_runs(columns, dz.at(m_, j).data, 1, [&](int64_t c, int64_t count, bool whole) {
          for (int64_t t = first_tile; t < tile; ++t) {
            T* const to = panel + (features_.begin(t) - from) * width + c;
            multiply_all(t, whole, dz.at(0, j + c), count, to, width, kept, scale);
          }
        });
        if (weight) plan_->panels_.unpack(p, from, features_.begin(tile) - from, panel, weight);
      }
      done(j, columns);
    }
  }

 private:
  static constexpr int kSamples = SparsePlan<T>::kSamples;
  static constexpr int64_t kBlockFeatures = SparsePlan<T>::kBlockFeatures;
  // Features of a packed panel whose sums are formed while they are in the first-level cache.
  static constexpr int64_t kPackDepth = 64;

  // Of the time of the dense product, as measured, where so many steps are listed. Packing the
  // weight takes as long as some rows of x, looking at x as some columns of W.
  double forward_cost(double listed) const { return 1.15 * listed + cost_beside(12, 25); }
  double gradient_cost(double listed) const { return 0.8 * listed + cost_beside(22, 35); }
  double cost_beside(double rows, double columns) const {
    return 0.1 + rows / static_cast<double>(m_) + columns / static_cast<double>(n_);
  }

  // The most frequent of some elements all over x, if it is more than half of them (Boyer and Moore
  // 1981), and no larger than the others in the mean.
  void sample() {
    T values[kSamples];
    int votes = 0;
    for (int i = 0; i < kSamples; ++i) {
      values[i] = *x_.at(plan_->samples_[i].row, plan_->samples_[i].column).data;
      if (votes == 0) background_ = values[i];
      votes += values[i] == background_ ? 1 : -1;
    }
    double others = 0, squares = 0;
    for (const T value : values) {
      if (value == background_) continue;
      ++others;
      squares += static_cast<double>(value) * static_cast<double>(value);
    }
    shifts_ = background_ != 0;
    if (shifts_) {
      const double size = std::fabs(static_cast<double>(background_));
      // … and s must not overflow: beside the greatest number it is no unit in the last place.
      if (!(size * size * others <= squares && others > 0 &&
            size < static_cast<double>(std::numeric_limits<T>::max()) *
                       static_cast<double>(std::numeric_limits<T>::epsilon()) / 8))
        return;
    }
    // A tile's rows or features have their values at different places.
    likely_ = forward_cost(1.5 * others / kSamples) < 1;
  }

  template <typename Item>
  static int64_t elements_of(int64_t items) {
    return aligned<T>(divide_up(items * static_cast<int64_t>(sizeof(Item)), sizeof(T)));
  }

  // The columns of marks[rows, n] with a mark, n up to kMaxBlockDepth; returns their number.
  static int64_t list_columns(int64_t rows, int64_t n, const uint8_t* marks, int64_t stride,
                              int32_t* list) {
    uint8_t any[kMaxBlockDepth];
    std::copy_n(marks, n, any);
    for (int64_t i = 1; i < rows; ++i) {
      for (int64_t j = 0; j < n; ++j) any[j] |= marks[i * stride + j];
    }
    int64_t count = 0;
    for (int64_t j = 0; j < n; ++j) {
      list[count] = static_cast<int32_t>(j);
      count += any[j];
    }
    return count;
  }

  // The rows with a mark, n up to 8.
  static int64_t list_rows(int64_t rows, int64_t n, const uint8_t* marks, int64_t stride,
                           int32_t* list) {
    uint8_t used[8] = {};
    std::fill_n(used, n, uint8_t(0xff));
    uint64_t mask;
    std::memcpy(&mask, used, 8);
    int64_t count = 0;
    for (int64_t i = 0; i < rows; ++i) {
      uint64_t row;
      std::memcpy(&row, marks + i * stride, 8);
      list[count] = static_cast<int32_t>(i);
      count += (row & mask) != 0;
    }
    return count;
  }

  // run(column, columns, whole) for the columns of a panel: all at once, or one vector after the
  // other where a sum is so large that it, or the background times it, might not be finite: how
  // panels are divided between threads must not show. limit: of the sums' share of the range.
  template <typename Run>
  void for_runs(int64_t columns, const T* sums, double limit, const Run& run) const {
    const double factor = std::max(1.0, std::fabs(static_cast<double>(background_)));
    const auto safe = [&](int64_t c, int64_t count) {
      return std::all_of(sums + c, sums + c + count, [&](T sum) {
        return std::fabs(static_cast<double>(sum)) * factor <
               limit / 4 * static_cast<double>(std::numeric_limits<T>::max());
      });
    };
    if (safe(0, columns)) return run(0, columns, false);
    for (int64_t c = 0; c < columns; c += kernels_->width) {
      const int64_t count = std::min<int64_t>(kernels_->width, columns - c);
      run(c, count, !safe(c, count));
    }
  }

  // One tile of the gradient, over the whole batch.
  void multiply_all(int64_t tile, bool whole, Matrix<T> dz, int64_t columns, T* to, int64_t width,
                    bool accumulate, T scale) const {
    for (int64_t part = 0; part < features_.parts().count(); ++part) {
      const int64_t m0 = features_.parts().begin(part);
      const bool last = part + 1 == features_.parts().count();
      const Matrix<T> a = (whole ? x_ : s_).at(m0, features_.begin(tile));
      multiply(features_, tile, part, whole, shifts_ && last, Matrix<T>{a.data, 1, a.row_stride},
               dz.at(m0, 0), columns, to, width, accumulate || part > 0, scale);
    }
  }

  // One tile: of all steps, or of those listed and `more` after them.
  void multiply(const SparseSteps& steps, int64_t tile, int64_t part, bool whole, int64_t more,
                Matrix<T> a, Matrix<T> b, int64_t columns, T* c, int64_t c_stride, bool accumulate,
                T scale) const {
    const int64_t depth = steps.parts().begin(part + 1) - steps.parts().begin(part);
    record_kernel<T>("listed", kernels_->isa, kernels_->tuning.few_rows.rows,
                     static_cast<int>(widest()));
    kernels_->gemm[steps.begin(tile + 1) - steps.begin(tile)][divide_up(columns, kernels_->width)](
        1, 0, whole ? depth : steps.count(tile, part) + more,
        whole ? nullptr : steps.list(tile, part), a.data, a.row_stride, a.col_stride, b.data,
        b.row_stride, c, c_stride, columns, accumulate, scale);
  }

  int64_t widest() const { return plan_->widest(); }

  const SparsePlan<T>* plan_ = nullptr;
  const Kernels<T>* kernels_ = nullptr;
  int64_t m_ = 0, n_ = 0, k_ = 0;
  Matrix<T> x_, s_;
  T background_ = 0;
  bool shifts_ = false;  // whether the background is another value than zero: decided once, for all
  bool likely_ = false;
  SparseSteps rows_, features_;  // of forward and of the gradient
  uint8_t* marks_ = nullptr;     // [m, k]: where x is not the background
  T* rest_ = nullptr;            // s
};

}  // namespace fastmlp::cpu
