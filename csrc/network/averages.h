// The running averages of what Norm::batch finds: torch.nn.BatchNorm1d's.
#pragma once

#include <cstdint>

#include "network/dtype.h"

namespace fastmlp {

struct AveragePlaces {
  int64_t layer = 0, features = 0;
  void *mean = nullptr, *variance = nullptr;  // [features], of the network's dtype
  int64_t* batches = nullptr;                 // how many there were; null: nobody counts
  // The share of the last batch; below 0: of each batch the same, of which there have to be some.
  double momentum = 0;
};

// A batch of so many rows, with its means and its variances, goes into the averages. The average of
// the variances is of unbiased ones.
template <typename T>
void add_batch(const AveragePlaces& places, int64_t rows, const T* mean, const T* variance) {
  if (places.batches) ++*places.batches;
  const double share = places.momentum >= 0 ? places.momentum
                       : places.batches     ? 1 / static_cast<double>(*places.batches)
                                            : 0;
  const T weight = static_cast<T>(share), rest = static_cast<T>(1 - share),
          unbiased = static_cast<T>(rows) / static_cast<T>(rows - 1);
  T *const means = static_cast<T*>(places.mean), *const variances =
                                                     static_cast<T*>(places.variance);
  for (int64_t j = 0; j < places.features; ++j) {
    means[j] = weight * mean[j] + rest * means[j];
    variances[j] = weight * (variance[j] * unbiased) + rest * variances[j];
  }
}

}  // namespace fastmlp
