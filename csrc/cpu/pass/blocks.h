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
    constexpr int64_t kLeastRows = 192, kLeast = 4, kMost = 128;
    const int64_t batch = spec.head.batch, layers = spec.layers.size();
    // One layer has nobody to wait for. More, and a block's list of layers would need memory.
    if (layers < 2 || layers > spec.layers.inline_capacity()) return {};
    if (batch < kLeast * kLeastRows) return {};
    const LayerSpec& first = spec.layers[0];
    if (SparsePlan<T>::fits(*machine.kernels, batch, first.out_features, first.in_features))
      return {};
    int64_t parameters = 0;
    for (const LayerSpec& layer : spec.layers) {
      if (layer.weight_gradient == Gradient::added) return {};  // of smaller batches
      parameters += layer.out_features * (layer.in_features + 1);
    }
    // Every block has gradients of its own.
    if (parameters * static_cast<int64_t>(sizeof(T)) > machine.cache_bytes / 8) return {};
    int64_t count = kLeast;
    while (2 * count <= kMost && 2 * count * kLeastRows <= batch) count *= 2;
    const int64_t tile = machine.kernels->tuning.many_rows.rows;
    const int64_t rows = divide_up(divide_up(batch, count), tile) * tile;
    return {divide_up(batch, rows), rows};
  }

  bool several() const { return count > 1; }

  template <typename T>
  void record(const Kernels<T>& kernels) const {
    record_kernel<T>("blocks", kernels.isa, static_cast<int>(rows), static_cast<int>(count));
  }

  // The plan of a block for one thread.
  template <typename Plan, typename T, typename... Arguments>
  std::unique_ptr<const Plan> plan(NetworkSpec spec, Machine<T> machine, int64_t block,
                                   Arguments... arguments) const {
    spec.head.batch = std::min(rows, spec.head.batch - block * rows);
    machine.max_threads = 1;
    return std::make_unique<const Plan>(spec, machine, arguments..., /*cuts=*/false);
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

}  // namespace fastmlp::cpu
