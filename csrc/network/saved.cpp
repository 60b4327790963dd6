#include "network/saved.h"

#include <algorithm>

namespace fastmlp {

void keep_for_gradients(NetworkSpec& spec) {
  const int64_t count = spec.layers.size(), first = spec.first_trained();
  for (int64_t l = 0; l < count; ++l) {
    LayerSpec& layer = spec.layers[l];
    const bool passes = l >= first && saves_output(layer.activation);
    const auto needs_input = [&](int64_t above) {
      return spec.layers[above].weight_gradient != Gradient::none ||
             (reads_input(spec.layers[above].norm) && above >= first);
    };
    // The last layer's output is kept as such, not here.
    bool feeds = l + 1 == count;
    for (int64_t above = l + 1; above < std::min(count, l + 3); ++above)
      feeds = feeds || (spec.reads_with(above) == l + 1 && needs_input(above));
    const bool is_factor = spec.is_gated(l) && l + 1 >= first;
    layer.keeps_output = feeds || is_factor || (passes && layer.is_output_activated());
    layer.keeps_sums = l >= first && saves_sums(layer.activation);
    layer.keeps_activated = l >= first && (layer.gates || (passes && !layer.is_output_activated()));
  }
}

namespace {

// place(layer, which of its members) for all that is kept.
template <typename Place>
void each_kept(const NetworkSpec& spec, const Place& place) {
  for (int64_t l = 0; l < spec.layers.size(); ++l) {
    const LayerSpec& layer = spec.layers[l];
    if (layer.keeps_output && l + 1 < spec.layers.size()) place(l, &LayerMemory::output);
    if (layer.keeps_sums) place(l, &LayerMemory::sums);
    if (layer.keeps_activated) place(l, &LayerMemory::activated);
  }
}

}  // namespace

InlineVector<int64_t, 16> kept_layers(const NetworkSpec& spec) {
  InlineVector<int64_t, 16> layers;
  each_kept(spec, [&](int64_t l, auto) { layers.push_back(l); });
  return layers;
}

int64_t statistics_elements(const NetworkSpec& spec) {
  int64_t elements = 0;
  for (const LayerSpec& layer : spec.layers)
    elements += layer.norm == Norm::batch ? 2 * layer.out_features : 0;
  return elements;
}

int64_t saved_elements(const NetworkSpec& spec) {
  int64_t elements = statistics_elements(spec);
  each_kept(spec,
            [&](int64_t l, auto) { elements += spec.head.batch * spec.layers[l].out_features; });
  return elements;
}

void place_saved(const NetworkSpec& spec, void* block, NetworkMemory& memory) {
  char* next = static_cast<char*>(block);
  for (int64_t l = 0; l < spec.layers.size(); ++l) {
    const LayerSpec& layer = spec.layers[l];
    if (layer.norm != Norm::batch) continue;
    const int64_t bytes = layer.out_features * size_of(spec.head.dtype);
    memory.layers[l].mean = next;
    memory.layers[l].variance = next + bytes;
    next += 2 * bytes;
  }
  each_kept(spec, [&](int64_t l, auto member) {
    memory.layers[l].*member = next;
    next += spec.head.batch * spec.layers[l].out_features * size_of(spec.head.dtype);
  });
}

}  // namespace fastmlp
