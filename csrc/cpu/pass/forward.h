// The whole network forward.
#pragma once

#include "cpu/pass/blocks.h"
#include "cpu/pass/first_layer.h"
#include "cpu/pass/machine.h"
#include "cpu/pass/stages.h"
#include "cpu/product/product.h"
#include "network/network.h"

namespace fastmlp::cpu {

// All that depends on shapes, strides and the machine alone: made once, run with any memory.
template <typename T>
class ForwardPlan {
 public:
  // cuts: whether the batch may be cut into blocks.
  ForwardPlan(const NetworkSpec& spec, const Machine<T>& machine, bool cuts = true);

  const NetworkSpec& spec() const { return spec_; }
  const Machine<T>& machine() const { return machine_; }
  const SparsePlan<T>& sparse() const { return sparse_; }
  // What it takes beside that of FirstLayer::elements(), which comes after it.
  int64_t workspace_elements() const {
    return blocks_ ? threads_ * blocks_.elements()
                   : buffer_count_ * scratch_ + factor_elements_ + buffers_.elements(threads_);
  }
  void run(const NetworkMemory& memory, FirstLayer<T>& first, T* workspace) const;

  // Its blocks, where the batch is cut, and a block's own plan run by one member alone.
  const BlockPlans<ForwardPlan>& blocks() const { return blocks_; }
  int threads() const { return threads_; }
  void run_alone(const NetworkMemory& memory, FirstLayer<T>& first, T* workspace) const;

 private:
  struct Run;
  void place_outputs();
  // Whether a layer is computed by the epilogue of the one before, piece by piece, while that is
  // still in the cache.
  bool follows(int64_t l) const {
    return l > 0 && l < spec_.layers.size() && is_elementwise(spec_.layers[l].norm) &&
           spec_.layers[l].out_features > 1;  // a single column is handled as a row
  }

  const NetworkSpec spec_;
  const Machine<T> machine_;
  const Kernels<T>& kernels_;
  InlineVector<Product<T>, 4> products_;
  SparsePlan<T> sparse_;  // of the first layer, in place of its product where that pays
  BufferPlan<T> buffers_;
  // For outputs that nobody keeps: elements of a buffer, how many there are, and each layer's.
  int64_t scratch_ = 0;
  int buffer_count_ = 2;
  InlineVector<int, 8> buffer_of_;
  // Of norms by columns, what they multiply by and the inverse deviations; each layer's place.
  int64_t factor_elements_ = 0;
  InlineVector<int64_t, 8> factors_of_;
  int threads_ = 1;
  bool uses_library_ = false;
  BlockPlans<ForwardPlan> blocks_;  // where the batch is cut
};

}  // namespace fastmlp::cpu
