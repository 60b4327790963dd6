// A large batch of narrow layers in blocks of rows. Each block goes through all layers as a batch
// of its own, by one member of the team: nobody waits between layers, and no row crosses from one
// core to another.
#pragma once

#include <algorithm>
#include <memory>
#include <type_traits>

#include "cpu/pass/machine.h"
#include "cpu/product/sparse/sparse_input.h"
#include "cpu/record.h"
#include "network/network.h"

namespace fastmlp::cpu {

// How a batch is cut, which depends on its shape and the processor alone: gradients are sums over
// the blocks.
struct Blocks {
  int64_t count = 1, rows = 0;  // of each but the last, which may have fewer

  template <typename T>
  static Blocks of(const NetworkSpec& spec, const Machine<T>& machine) {
    const Tuning& tuning = machine.kernels->tuning;
    const int64_t batch = spec.head.batch, layers = spec.layers.size();
    // One layer has nobody to wait for. More, and a block's list of layers would need memory.
    if (layers < 2 || layers > spec.layers.inline_capacity()) return {};
    if (batch < tuning.least_blocks * tuning.block_rows) return {};
    const LayerSpec& first = spec.layers[0];
    if (!first.is_norm() &&
        SparsePlan<T>::fits(*machine.kernels, batch, first.out_features, first.in_features))
      return {};
    int64_t parameters = 0;
    for (const LayerSpec& layer : spec.layers) {
      // A sum of gradients is not added to a weight part by part. (Smaller batches are.)
      if (layer.weight_gradient == Gradient::added) return {};
      if (layer.norm == Norm::batch) return {};  // whose rows are not apart
      parameters += layer.weight_elements() + layer.out_features;
    }
    // Every block has gradients of its own.
    const auto most = tuning.parameters_share * static_cast<double>(machine.cache_bytes);
    if (static_cast<double>(parameters * static_cast<int64_t>(sizeof(T))) > most) return {};
    int64_t count = tuning.least_blocks;
    while (2 * count <= tuning.most_blocks && 2 * count * tuning.block_rows <= batch) count *= 2;
    const int64_t tile = tuning.many_rows.rows;
    const int64_t rows = divide_up(divide_up(batch, count), tile) * tile;
    return {divide_up(batch, rows), rows};
  }

  // Where its rows lie.
  template <typename T>
  NetworkMemory memory(const NetworkSpec& spec, const NetworkMemory& whole, int64_t block) const {
    NetworkMemory one = whole;
    const auto advance = [row = block * rows](auto*& place, int64_t stride) {
      using Place = std::remove_reference_t<decltype(place)>;
      using Number = std::conditional_t<std::is_same_v<Place, const void*>, const T, T>;
      if (place) place = static_cast<Number*>(place) + row * stride;
    };
    advance(one.input, spec.head.input_stride);
    advance(one.grad_output, spec.head.grad_output_stride);
    advance(one.grad_input, spec.layers[0].in_features);
    for (int64_t l = 0; l < one.layers.size(); ++l) {
      LayerMemory& layer = one.layers[l];
      const int64_t stride = spec.layers[l].out_features;
      advance(layer.noise, stride);
      advance(layer.output, stride);
      advance(layer.sums, stride);
      advance(layer.activated, stride);
    }
    return one;
  }
};

// The plans of a batch that is cut: one for all blocks but the last, which may be a smaller batch.
template <typename Plan>
class BlockPlans {
 public:
  // arguments: the plan's own, beside network and machine.
  template <typename T, typename... Arguments>
  void cut(const NetworkSpec& spec, const Machine<T>& machine, Arguments... arguments) {
    blocks_ = Blocks::of(spec, machine);
    if (blocks_.count == 1) return;
    Machine<T> alone = machine;
    alone.max_threads = 1;
    alone.may_use_library = false;
    const auto plan = [&](int64_t block) {
      NetworkSpec one = spec;
      one.head.batch = std::min(blocks_.rows, spec.head.batch - block * blocks_.rows);
      return std::make_unique<const Plan>(one, alone, arguments..., /*cuts=*/false);
    };
    block_ = plan(0);
    last_ = plan(blocks_.count - 1);
  }

  explicit operator bool() const { return block_ != nullptr; }
  int64_t count() const { return blocks_.count; }
  int64_t begin(int64_t block) const { return block * blocks_.rows; }  // its first row
  const Plan& plan(int64_t block) const { return block + 1 < count() ? *block_ : *last_; }
  // Of a member's workspace. A smaller batch may take another form of product, and more.
  int64_t elements() const {
    return std::max(block_->workspace_elements(), last_->workspace_elements());
  }
  // take(block, where its rows lie) for this member's blocks.
  template <typename T, typename Take>
  void each(Member member, const NetworkSpec& spec, const NetworkMemory& whole,
            const Take& take) const {
    member.each_piece(blocks_.count, [&](int64_t block) {
      NetworkMemory memory = blocks_.memory<T>(spec, whole, block);
      take(block, memory);
    });
  }
  template <typename T>
  void record(const Kernels<T>& kernels, const char* form = "blocks") const {
    record_kernel<T>(form, kernels.isa, static_cast<int>(blocks_.rows),
                     static_cast<int>(blocks_.count));
  }

 private:
  Blocks blocks_;
  std::unique_ptr<const Plan> block_, last_;
};

}  // namespace fastmlp::cpu
