#include "torch/averages.h"

namespace fastmlp {

AveragePlaces RunningAverage::lowered() const {
  AveragePlaces places;
  places.layer = layer;
  places.features = mean.numel();
  places.mean = mean.mutable_data_ptr();
  places.variance = variance.mutable_data_ptr();
  if (batches.defined()) places.batches = batches.mutable_data_ptr<int64_t>();
  places.momentum = momentum;
  return places;
}

void RunningAverage::bump_version() const {
  if (batches.defined() && !batches.is_inference()) batches.unsafeGetTensorImpl()->bump_version();
}

void check_rows(const Program& program, int64_t rows, int64_t features) {
  TORCH_CHECK_VALUE(
      rows > 1 || !has_batch_norm(program),
      "Expected more than 1 value per channel when training, got input size torch.Size([", rows,
      ", ", features, "])");
}

namespace {

template <typename T>
void add(const Averages& averages, const Arguments& arguments, const T* next) {
  const auto& layers = arguments.program.layers;
  const RunningAverage* one = averages.begin();
  for (int64_t l = 0; l < layers.size() && one != averages.end(); ++l) {
    if (layers[l].norm != Norm::batch) continue;
    const int64_t features = arguments.out_features(l);
    if (one->layer == l) {
      add_batch(one->lowered(), arguments.batch(), next, next + features);
      one->bump_version();
      ++one;
    }
    next += 2 * features;
  }
}

}  // namespace

void add_batch(const Averages& averages, const Arguments& arguments, const at::Tensor& statistics) {
  if (statistics.scalar_type() == at::kFloat) {
    add(averages, arguments, statistics.const_data_ptr<float>());
  } else {
    add(averages, arguments, statistics.const_data_ptr<double>());
  }
}

}  // namespace fastmlp
