// The seam between what is computed and the device that computes it: nothing above this header
// names a device's own files.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "network/averages.h"
#include "network/losses.h"
#include "network/network.h"
#include "network/optimizers.h"

namespace fastmlp {

// One batch of a sequence of training steps.
struct StepBatch {
  int64_t rows = 0;
  const void* input = nullptr;  // [rows, in_features], contiguous along features
  int64_t input_stride = 0;
  Loss loss;                           // without what the network computes
  InlineVector<const void*, 8> noise;  // of each layer; null: none
};

// What does not change from step to step.
struct StepArguments {
  NetworkSpec network;   // of any batch; gradients: those of what is trained, as written
  NetworkMemory memory;  // the parameters
  struct Parameter {
    int64_t layer = 0;
    bool is_bias = false;
  };
  Updates updates;                          // they move on with the steps
  InlineVector<Parameter, 16> parameters;   // of each update
  InlineVector<AveragePlaces, 4> averages;  // which move on, too
  double max_grad_norm = 0;                 // 0: no clipping
  // Whether nothing outside reads the parameters between two steps.
  bool is_alone = false;
};

// Where a sequence of steps has its batches from, and tells of each step. What it throws ends the
// sequence.
class StepFeed {
 public:
  virtual ~StepFeed() = default;

  // The next batch; false: there is none.
  virtual bool next(StepBatch& batch) = 0;
  virtual void done(const LossResult& result) = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;

  virtual bool takes(at::ScalarType dtype) const = 0;
  // An uninitialised contiguous tensor.
  virtual at::Tensor allocate(at::IntArrayRef sizes, at::ScalarType dtype) const = 0;
  virtual void forward(const NetworkSpec& spec, const NetworkMemory& memory) const = 0;
  virtual void backward(const NetworkSpec& spec, const NetworkMemory& memory) const = 0;
  // Forward, loss, backward and update, one batch after the other. Leaves the parameters up to
  // date, also where the feed or a step throws.
  virtual void run_steps(const StepArguments& arguments, StepFeed& feed) const = 0;
  // to[count, features] = the rows of `from` that `rows` lists, a stride apart, in elements; of the
  // network's dtype, or of uint8, which is read as scale · x + shift.
  virtual void gather(Dtype dtype, const void* from, int64_t stride, const int64_t* rows,
                      int64_t count, int64_t features, void* to) const = 0;
  virtual void gather_bytes(Dtype dtype, const uint8_t* from, int64_t stride, const int64_t* rows,
                            int64_t count, int64_t features, double scale, double shift,
                            void* to) const = 0;
  // out[elements]: `value` where torch's bernoulli_(probability) would draw a one from the default
  // generator, else 0.
  virtual void draw_noise(Dtype dtype, double probability, double value, int64_t elements,
                          void* out) const = 0;
};

// The backend of a device; null: there is none.
const Backend* backend_of(c10::DeviceType device);
void register_backend(c10::DeviceType device, const Backend* backend);

}  // namespace fastmlp
