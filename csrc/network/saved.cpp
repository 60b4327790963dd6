#include "network/saved.h"

namespace fastmlp {

void keep_for_gradients(NetworkSpec& spec) {
  const int64_t count = spec.layers.size(), first = spec.first_trained();
  for (int64_t l = 0; l < count; ++l) {
    LayerSpec& layer = spec.layers[l];
    const bool passes = l >= first && saves_output(layer.activation);
    // The last layer's output is kept as such, not here.
    const bool feeds = l + 1 < count && (spec.layers[l + 1].weight_gradient != Gradient::none ||
                                         (reads_input(spec.layers[l + 1].norm) && l + 1 >= first));
    layer.keeps_output = l + 1 == count || feeds || (passes && layer.is_output_activated());
    layer.keeps_sums = l >= first && saves_sums(layer.activation);
    layer.keeps_activated = passes && !layer.is_output_activated();
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
