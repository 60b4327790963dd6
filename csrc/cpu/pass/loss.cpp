#include "cpu/pass/loss.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/isa/isa.h"
#include "cpu/kernels/table.h"
#include "cpu/product/matrix.h"
#include "cpu/team.h"

namespace fastmlp::cpu {
namespace {

// Sums are formed over parts of so many rows or elements, and these in order: their bits do not
// depend on the threads.
constexpr int64_t kRows = 64, kElements = 16384;

// For so many elements of simple work.
int team_size(int64_t elements, int64_t max_threads) {
  const int64_t of_one = active_kernels<float>().tuning.elements_per_thread;
  return static_cast<int>(std::clamp<int64_t>(elements / of_one, 1, max_threads));
}

}  // namespace

template <typename T>
void prepare_loss(Loss& loss) {
  loss.dtype = sizeof(T) == 4 ? Dtype::float32 : Dtype::float64;
  losses()[loss.kind].prepare(loss);
}

template <typename T>
LossResult sum_of_rows(const Loss& loss, int64_t begin, int64_t end) {
  const auto rows = active_kernels<T>().loss[loss.kind];
  LossResult sum;
  for (; begin < end; begin += kRows) sum += rows(loss, begin, std::min(end, begin + kRows));
  return sum;
}

LossResult loss_of(const Loss& loss, const LossResult* sums, int64_t count) {
  LossResult result;
  for (int64_t i = 0; i < count; ++i) result += sums[i];
  result.loss /= loss.denominator;
  return result;
}

template <typename T>
LossResult compute_loss(Loss& loss, int64_t max_threads) {
  const LossInfo& info = losses()[loss.kind];
  if (info.per_row && loss.features == 0) return {info.of_no_classes(loss), 0};
  prepare_loss<T>(loss);
  const int64_t count = divide_up(loss.batch, kRows);
  InlineVector<LossResult, 64> parts;
  parts.resize(count);
  // An exponential takes as long as ten simple operations.
  const int threads = count > 1 ? team_size(10 * loss.batch * loss.features, max_threads) : 1;
  run_team(threads, [&](Member member) {
    member.each_piece(count, [&](int64_t part) {
      const int64_t begin = part * kRows;
      parts[part] = sum_of_rows<T>(loss, begin, std::min(loss.batch, begin + kRows));
    });
  });
  return loss_of(loss, parts.begin(), count);
}

template <typename T>
double clipping_factor(const Updates& updates, double max_norm, int64_t max_threads) {
  double total = 0;
  for (const Update* const update : updates) {
    const T* const gradient = static_cast<const T*>(update->gradient);
    const int64_t elements = update->elements, count = divide_up(elements, kElements);
    InlineVector<double, 64> parts;
    parts.resize(count);
    run_team(team_size(elements, max_threads), [&](Member member) {
      member.each_piece(count, [&](int64_t part) {
        const int64_t end = std::min(elements, (part + 1) * kElements);
        // Eight sums of their own, so that the processor adds them side by side.
        double sums[8] = {};
        int64_t i = part * kElements;
        for (; i + 8 <= end; i += 8) {
          for (int l = 0; l < 8; ++l) {
            const double g = gradient[i + l];
            sums[l] += g * g;
          }
        }
        for (; i < end; ++i) {
          const double g = gradient[i];
          sums[0] += g * g;
        }
        for (const double sum : sums) parts[part] += sum;
      });
    });
    for (const double part : parts) total += part;
  }
  // std::min would drop a NaN.
  const double factor = max_norm / (std::sqrt(total) + 1e-6);
  return factor > 1 ? 1 : factor;
}

template <typename T>
void apply(const Updates& updates, double gradient_scale, int64_t max_threads) {
  const Kernels<T>& kernels = active_kernels<T>();
  int64_t elements = 0;
  for (const Update* const update : updates) elements += update->elements;
  run_team(team_size(elements, max_threads), [&](Member member) {
    for (const Update* const one : updates) {
      const Update& u = *one;
      const auto [begin, end] = member.vectors(u.elements, kernels.width);
      if (const int64_t n = end - begin; n > 0)
        kernels.update[u.optimizer](1, n, n, begin, u, gradient_scale);
    }
  });
}

void advance(const Updates& updates) {
  const Update* before = nullptr;
  double scalars[kMostScalars] = {};  // of it, before it went on
  for (Update* const one : updates) {
    Update& update = *one;
    // Most parameters share their options and their step.
    const bool same = before && update.optimizer == before->optimizer &&
                      std::memcmp(update.options, before->options, sizeof(update.options)) == 0 &&
                      std::memcmp(update.narrow, before->narrow, sizeof(update.narrow)) == 0 &&
                      std::memcmp(update.scalars, scalars, sizeof(scalars)) == 0;
    if (!same) std::memcpy(scalars, update.scalars, sizeof(scalars));
    if (same) {
      std::memcpy(update.scalars, before->scalars, sizeof(update.scalars));
      std::memcpy(update.numbers, before->numbers, sizeof(update.numbers));
    } else {
      optimizers()[update.optimizer].advance(update);
    }
    before = &update;
  }
}

namespace {

// take(i) for each of the rows i. They lie anywhere in memory: the way to them takes longer than
// what is done with them.
template <typename Take>
void each_row(const void* from, int64_t stride, const int64_t* rows, int64_t count,
              int64_t row_bytes, int threads, const Take& take) {
  constexpr int64_t kAhead = 4, kLine = 64;
  const char* const begin_of = static_cast<const char*>(from);
  run_team(threads, [&](Member member) {
    const int64_t begin = member.begin(count), end = member.end(count);
    for (int64_t i = begin - kAhead; i < end; ++i) {
      if (i + kAhead < end) {
        const char* const next = begin_of + rows[i + kAhead] * stride;
        for (int64_t j = 0; j < row_bytes; j += kLine) __builtin_prefetch(next + j, 0, 0);
      }
      if (i >= begin) take(i);
    }
  });
}

}  // namespace

template <typename T>
void gather(const uint8_t* from, int64_t stride, const int64_t* rows, int64_t count,
            int64_t features, T scale, T shift, T* to, int64_t max_threads) {
  const Kernels<T>& kernels = active_kernels<T>();
  each_row(from, stride, rows, count, features,
           team_size(kernels.tuning.gathered_element * count * features, max_threads),
           [&](int64_t i) {
             kernels.convert(features, from + rows[i] * stride, scale, shift, to + i * features);
           });
}

void gather(const void* from, int64_t stride, const int64_t* rows, int64_t count, int64_t row_bytes,
            void* to, int64_t max_threads) {
  if (row_bytes == 0) return;
  each_row(from, stride, rows, count, row_bytes, team_size(count * row_bytes / 4, max_threads),
           [&](int64_t i) {
             std::memcpy(static_cast<char*>(to) + i * row_bytes,
                         static_cast<const char*>(from) + rows[i] * stride, row_bytes);
           });
}

template void prepare_loss<float>(Loss&);
template void prepare_loss<double>(Loss&);
template LossResult sum_of_rows<float>(const Loss&, int64_t, int64_t);
template LossResult sum_of_rows<double>(const Loss&, int64_t, int64_t);
template LossResult compute_loss<float>(Loss&, int64_t);
template LossResult compute_loss<double>(Loss&, int64_t);
template double clipping_factor<float>(const Updates&, double, int64_t);
template double clipping_factor<double>(const Updates&, double, int64_t);
template void apply<float>(const Updates&, double, int64_t);
template void apply<double>(const Updates&, double, int64_t);
template void gather<float>(const uint8_t*, int64_t, const int64_t*, int64_t, int64_t, float, float,
                            float*, int64_t);
template void gather<double>(const uint8_t*, int64_t, const int64_t*, int64_t, int64_t, double,
                             double, double*, int64_t);

}  // namespace fastmlp::cpu
