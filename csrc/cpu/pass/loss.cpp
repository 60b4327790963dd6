#include "cpu/pass/loss.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/isa/isa.h"
#include "cpu/kernels/table.h"
#include "cpu/product/matrix.h"
#include "cpu/team.h"
#include "cpu/pass/update.h"

namespace fastmlp::cpu {
namespace {

// Sums are formed over runs of so many rows or elements, and these in order: their bits do not
// depend on the threads.
constexpr int64_t kRows = 64, kElements = 16384;

// Elements of simple work that are worth a thread.
constexpr int64_t kElementsPerThread = 20000;
constexpr int64_t kRowsCost = 2;  // of an element that is gathered, in these

int team_size(int64_t elements, int max_threads) {
  return static_cast<int>(std::clamp<int64_t>(elements / kElementsPerThread, 1, max_threads));
}

// What one row's cross entropy needs to know of the whole batch.
struct WholeBatch {
  double denominator = 1;  // of the mean
  double weights = 0;      // of all classes together
};

template <typename T>
WholeBatch prepare(const Loss<T>& loss) {
  WholeBatch whole;
  for (int64_t j = 0; j < loss.features; ++j) whole.weights += loss.weight ? loss.weight[j] : 1;
  if (!loss.mean) return whole;
  if (loss.kind == LossKind::cross_entropy_probabilities) {
    whole.denominator = static_cast<double>(loss.batch);
    return whole;
  }
  whole.denominator = 0;
  for (int64_t i = 0; i < loss.batch; ++i) {
    if (loss.classes[i] != loss.ignore_index)
      whole.denominator += loss.weight ? loss.weight[loss.classes[i]] : 1;
  }
  return whole;
}

// torch's argmax: the first of the greatest, NaN above all.
template <typename T>
int64_t argmax(int64_t n, const T* z) {
  int64_t best = 0;
  for (int64_t j = 1; j < n; ++j) {
    if (z[j] > z[best] || (std::isnan(z[j]) && !std::isnan(z[best]))) best = j;
  }
  return best;
}

template <typename T>
LossResult cross_entropy(const Loss<T>& loss, const WholeBatch& whole, int64_t begin, int64_t end) {
  const Kernels<T>& kernels = active_kernels<T>();
  const int64_t n = loss.features;
  const double smooth = loss.label_smoothing / static_cast<double>(n);
  const double keep = 1 - loss.label_smoothing;
  T maximum[kRows], sum[kRows];
  kernels.softmax(end - begin, n, loss.prediction + begin * n, loss.gradient + begin * n, maximum,
                  sum);
  LossResult result;
  for (int64_t i = begin; i < end; ++i) {
    const T* z = loss.prediction + i * n;
    T* gradient = loss.gradient + i * n;
    // -log p of class j is `level` - z[j].
    const double level =
        static_cast<double>(maximum[i - begin]) + std::log(static_cast<double>(sum[i - begin]));
    const auto weight = [&](int64_t j) { return loss.weight ? double(loss.weight[j]) : 1.0; };
    if (loss.kind == LossKind::cross_entropy) {
      const int64_t label = loss.classes[i];
      if (label == loss.ignore_index) {
        for (int64_t j = 0; j < n; ++j) gradient[j] *= T(0);  // NaN stays, as in torch
        continue;
      }
      // Most wrong predictions are seen without looking at all of z. A NaN makes the sum one.
      const bool possible = z[label] == maximum[i - begin] || std::isnan(sum[i - begin]);
      result.correct += possible && argmax(n, z) == label;
      const double own = keep * weight(label);
      double total = own * (level - z[label]);
      const double all = own + smooth * whole.weights;
      if (smooth == 0) {
        const T scale = static_cast<T>(all / whole.denominator);
        for (int64_t j = 0; j < n; ++j) gradient[j] *= scale;
      } else {
        for (int64_t j = 0; j < n; ++j) {
          const double share = smooth * weight(j);
          total += share * (level - z[j]);
          gradient[j] = static_cast<T>((gradient[j] * all - share) / whole.denominator);
        }
      }
      gradient[label] -= static_cast<T>(own / whole.denominator);
      result.loss += total;
    } else {
      const T* target = loss.target + i * n;
      double all = 0, total = 0;
      for (int64_t j = 0; j < n; ++j) {
        const double share = weight(j) * (keep * target[j] + smooth);
        all += share;
        total += share * (level - z[j]);
      }
      for (int64_t j = 0; j < n; ++j) {
        const double share = weight(j) * (keep * target[j] + smooth);
        gradient[j] = static_cast<T>((gradient[j] * all - share) / whole.denominator);
      }
      result.loss += total;
    }
  }
  return result;
}

template <typename T>
LossResult elementwise(const Loss<T>& loss, int64_t begin, int64_t end) {
  const double count = static_cast<double>(loss.batch * loss.features);
  const T scale = static_cast<T>(loss.mean ? 1 / count : 1);
  const Kernels<T>& kernels = active_kernels<T>();
  const int64_t first = begin * loss.features, n = (end - begin) * loss.features;
  const auto at = [first](const T* pointer) { return pointer ? pointer + first : nullptr; };
  LossResult result;
  if (loss.kind == LossKind::mse) {
    result.loss = kernels.squared_error(n, at(loss.prediction), at(loss.target), scale,
                                        loss.gradient + first);
  } else {
    result.loss = kernels.bce_with_logits(n, at(loss.prediction), at(loss.target), at(loss.weight),
                                          at(loss.positive_weight), scale, loss.gradient + first);
  }
  return result;
}

}  // namespace

template <typename T>
LossResult compute_loss(const Loss<T>& loss, int max_threads) {
  const bool crosses =
      loss.kind == LossKind::cross_entropy || loss.kind == LossKind::cross_entropy_probabilities;
  if (crosses && loss.features == 0) {  // torch divides nothing by the number of classes
    const bool smooths = loss.kind == LossKind::cross_entropy && loss.label_smoothing > 0;
    return {loss.mean || smooths ? std::numeric_limits<double>::quiet_NaN() : 0, 0};
  }
  const WholeBatch whole = crosses ? prepare(loss) : WholeBatch{};
  std::vector<LossResult> runs(divide_up(loss.batch, kRows));
  // An exponential takes as long as ten simple operations.
  run_team(team_size(10 * loss.batch * loss.features, max_threads), [&](Member member) {
    const auto count = static_cast<int64_t>(runs.size());
    for (int64_t run = member.begin(count); run < member.end(count); ++run) {
      const int64_t begin = run * kRows, end = std::min(loss.batch, begin + kRows);
      runs[run] = crosses ? cross_entropy(loss, whole, begin, end) : elementwise(loss, begin, end);
    }
  });
  LossResult result;
  for (const LossResult& run : runs) {
    result.loss += run.loss;
    result.correct += run.correct;
  }
  if (crosses) {
    result.loss /= whole.denominator;
  } else if (loss.mean) {
    result.loss /= static_cast<double>(loss.batch * loss.features);
  }
  return result;
}

template <typename T>
double clipping_factor(const std::vector<Update<T>>& updates, double max_norm, int max_threads) {
  double total = 0;
  for (const Update<T>& update : updates) {
    std::vector<double> runs(divide_up(update.elements, kElements));
    run_team(team_size(update.elements, max_threads), [&](Member member) {
      const auto count = static_cast<int64_t>(runs.size());
      for (int64_t run = member.begin(count); run < member.end(count); ++run) {
        const int64_t end = std::min(update.elements, (run + 1) * kElements);
        // Eight sums of their own, so that the processor adds them side by side.
        double sums[8] = {};
        int64_t i = run * kElements;
        for (; i + 8 <= end; i += 8) {
          for (int l = 0; l < 8; ++l) {
            const double g = update.gradient[i + l];
            sums[l] += g * g;
          }
        }
        for (; i < end; ++i) {
          const double g = update.gradient[i];
          sums[0] += g * g;
        }
        for (const double sum : sums) runs[run] += sum;
      }
    });
    for (const double run : runs) total += run;
  }
  // std::min would drop a NaN.
  const double factor = max_norm / (std::sqrt(total) + 1e-6);
  return factor > 1 ? 1 : factor;
}

template <typename T>
void apply(const std::vector<Update<T>>& updates, double gradient_scale, int max_threads) {
  const Kernels<T>& kernels = active_kernels<T>();
  int64_t elements = 0;
  for (const Update<T>& update : updates) elements += update.elements;
  run_team(team_size(elements, max_threads), [&](Member member) {
    for (const Update<T>& u : updates) {
      const int64_t groups = divide_up(u.elements, kernels.width);
      const int64_t begin = member.begin(groups) * kernels.width;
      const int64_t n = std::min(u.elements, member.end(groups) * kernels.width) - begin;
      if (n <= 0) continue;
      update(kernels, u, gradient_scale, begin, 1, n, n);
    }
  });
}

template <typename T>
void gather(const uint8_t* from, int64_t stride, const int64_t* rows, int64_t count,
            int64_t features, T scale, T shift, T* to, int max_threads) {
  const Kernels<T>& kernels = active_kernels<T>();
  // The rows lie anywhere in memory: the way to them takes longer than their conversion.
  constexpr int64_t kAhead = 4, kLine = 64;
  run_team(team_size(kRowsCost * count * features, max_threads), [&](Member member) {
    const int64_t begin = member.begin(count), end = member.end(count);
    for (int64_t i = begin - kAhead; i < end; ++i) {
      if (i + kAhead < end) {
        const uint8_t* const next = from + rows[i + kAhead] * stride;
        for (int64_t j = 0; j < features; j += kLine) __builtin_prefetch(next + j, 0, 0);
      }
      if (i >= begin)
        kernels.convert(features, from + rows[i] * stride, scale, shift, to + i * features);
    }
  });
}

template LossResult compute_loss<float>(const Loss<float>&, int);
template LossResult compute_loss<double>(const Loss<double>&, int);
template double clipping_factor<float>(const std::vector<Update<float>>&, double, int);
template double clipping_factor<double>(const std::vector<Update<double>>&, double, int);
template void apply<float>(const std::vector<Update<float>>&, double, int);
template void apply<double>(const std::vector<Update<double>>&, double, int);
template void gather<float>(const uint8_t*, int64_t, const int64_t*, int64_t, int64_t, float, float,
                            float*, int);
template void gather<double>(const uint8_t*, int64_t, const int64_t*, int64_t, int64_t, double,
                             double, double*, int);

}  // namespace fastmlp::cpu
