// The whole network backward.
#pragma once

#include "cpu/pass/blocks.h"
#include "cpu/pass/first_layer.h"
#include "cpu/pass/machine.h"
#include "cpu/pass/stages.h"
#include "cpu/product/product.h"
#include "network/network.h"

namespace fastmlp::cpu {

// As ForwardPlan; skips_background: the first layer's weight gradient passes over what most of the
// input is.
template <typename T>
class BackwardPlan {
 public:
  BackwardPlan(const NetworkSpec& spec, const Machine<T>& machine, bool skips_background,
               bool cuts = true);

  const NetworkSpec& spec() const { return spec_; }
  const Machine<T>& machine() const { return machine_; }
  bool skips_background() const { return skips_background_; }
  const SparsePlan<T>& sparse() const { return sparse_; }
  // As of ForwardPlan.
  int64_t workspace_elements() const {
    if (blocks_) return threads_ * blocks_.elements() + gradient_elements();
    return scratches_ * scratch_ + skipped_elements_ + 2 * terms_ + kColumns * columns_ +
           buffers_.elements(threads_);
  }
  // has_looked: whether forward has looked at the input already, and what it found is still there.
  void run(const NetworkMemory& memory, FirstLayer<T>& first, bool has_looked, T* workspace) const;

  // Its blocks, where the batch is cut, the size of the team that is worth while, and the elements
  // that the gradients of all blocks take.
  const BlockPlans<BackwardPlan>& blocks() const { return blocks_; }
  int threads() const { return threads_; }
  int64_t gradient_elements() const { return blocks_.count() * gradients_; }
  // A block by one member alone; `rows`: where the block's operands lie.
  void run_block(int64_t block, NetworkMemory& rows, FirstLayer<T>& first, T* workspace,
                 T* gradients) const;
  // This member's share of the sums over all blocks, once all have run, and what becomes of them.
  void sum_blocks(Member member, const NetworkMemory& memory, const T* gradients) const;

 private:
  struct Run;

  const LayerSpec& layer(int64_t l) const { return spec_.layers[l]; }
  bool needs_input_gradient(int64_t l) const {
    return spec_.reads_with(l) > first_ || spec_.head.input_gradient;
  }
  bool keeps_skipped(int64_t l) const {
    return layer(l).skip > 0 && needs_input_gradient(layer(l).skip_from(l));
  }
  // The layer to whose output the input of layer l is added; -1: none.
  int64_t skip_to(int64_t l) const {
    for (int64_t above = l; above < layers_; ++above) {
      if (layer(above).skip > 0) return layer(above).skip_from(above) == l ? above : -1;
    }
    return -1;
  }
  // The last layer's dL/dz is the incoming gradient itself where there is nothing to go through.
  bool is_given(int64_t l) const;
  // From row to row of a layer's dL/dz, and of its input.
  int64_t grad_stride(int64_t l) const {
    return is_given(l) ? spec_.head.grad_output_stride : layer(l).out_features;
  }

  // dz of three layers at once: one is written and one read for dx, the one above read for dW. With
  // gates, the first two of these are two each.
  static constexpr int64_t kScratches = 3, kScratchesWithGates = 5;
  // Of a norm by columns: what they are multiplied by, the inverse deviations, both sums.
  static constexpr int64_t kColumns = 4;

  const NetworkSpec spec_;
  const Machine<T> machine_;
  const Kernels<T>& kernels_;
  const bool skips_background_;
  const int64_t layers_, first_;  // the layers below `first_` need no gradient
  InlineVector<Product<T>, 4> weight_products_, input_products_;  // [layer - first_]
  SparsePlan<T> sparse_;  // of the first layer's weight gradient
  BufferPlan<T> buffers_;
  // Elements of one of the buffers for dz, for dy of residual layers, for the terms of norms'
  // gradients, and for a number of each column.
  int64_t scratches_ = kScratches;
  int64_t scratch_ = 0, skipped_elements_ = 0, terms_ = 0, columns_ = 0;
  int threads_ = 1;
  bool uses_library_ = false;
  BlockPlans<BackwardPlan> blocks_;  // where the batch is cut
  int64_t gradients_ = 0;            // elements of a block's
};

}  // namespace fastmlp::cpu
