#include "cpu/pass/forward.h"

#include <algorithm>
#include <tuple>

namespace fastmlp::cpu {

template <typename T>
ForwardPlan<T>::ForwardPlan(const NetworkSpec& spec, const Machine<T>& machine, bool cuts)
    : spec_(spec), machine_(machine), kernels_(*machine.kernels) {
  const int64_t batch = spec.head.batch;
  const LayerSpec& first = spec.layers[0];
  if (!first.is_norm()) {
    sparse_ = SparsePlan<T>(kernels_, batch, first.out_features, first.in_features,
                            static_cast<int>(machine.max_threads));
  }
  if (sparse_.fits()) buffers_.add(sparse_.forward_elements());
  double cost = 0;
  for (int64_t l = 0; l < spec.layers.size(); ++l) {
    const LayerSpec& layer = spec.layers[l];
    cost += layer.is_norm() ? norm_cost(batch, layer.out_features)
                            : product_cost(batch, layer.out_features, layer.in_features);
    if (!layer.keeps_output) scratch_ = std::max(scratch_, aligned<T>(batch * layer.out_features));
    products_.push_back({kernels_,
                         {layer.is_norm() ? 0 : batch,
                          layer.out_features,
                          layer.in_features,
                          {spec.input_stride(l), 1},
                          {1, layer.weight_stride}},
                         machine.may_use_library});
    buffers_.add_product(products_.back());
    uses_library_ = uses_library_ || products_.back().is_by_library();
    factors_of_.push_back(factor_elements_);
    if (is_by_columns(layer.norm) && has_eps(layer.norm))
      factor_elements_ += 2 * aligned<T>(layer.out_features);
  }
  place_outputs();
  threads_ = team_size(cost, machine);
  if (cuts && !uses_library_) blocks_.cut(spec, machine);
  if (blocks_) threads_ = std::min(threads_, static_cast<int>(blocks_.count()));
}

// An output is read by the next layer, and by the one after it where that gates, and once more
// where it is added to that of a later one: its buffer is free from then on. A layer that follows
// is written while its leader is.
template <typename T>
void ForwardPlan<T>::place_outputs() {
  const int64_t count = spec_.layers.size();
  InlineVector<int64_t, 8> last_reader;  // of each buffer
  for (int64_t l = 0, leader = 0; l < count; ++l) {
    if (!follows(l)) leader = l;
    int64_t reader = spec_.is_gated(l + 1) ? l + 2 : l + 1;
    for (int64_t above = l + 2; above < count; ++above) {
      const LayerSpec& layer = spec_.layers[above];
      if (layer.skip > 0 && layer.skip_from(above) == l + 1) reader = above;
    }
    int buffer = 0;
    while (buffer < last_reader.size() && last_reader[buffer] >= leader) ++buffer;
    if (buffer == last_reader.size()) last_reader.push_back(0);
    last_reader[buffer] = reader;
    buffer_of_.push_back(buffer);
  }
  buffer_count_ = static_cast<int>(last_reader.size());
}

// A run of the plan: where everything lies.
template <typename T>
struct ForwardPlan<T>::Run {
  const ForwardPlan& plan;
  const NetworkMemory& memory;
  FirstLayer<T>& first;
  T *factors, *buffers;
  struct Sums {
    T *sums, *activated, *output;  // the caller's, or scratch
  };
  InlineVector<Sums, 8> layers;

  Run(const ForwardPlan& plan, const NetworkMemory& memory, FirstLayer<T>& first, T* workspace)
      : plan(plan),
        memory(memory),
        first(first),
        factors(workspace + plan.buffer_count_ * plan.scratch_),
        buffers(factors + plan.factor_elements_) {
    for (int64_t l = 0; l < plan.spec_.layers.size(); ++l) {
      const LayerMemory& layer = memory.layers[l];
      if (plan.spec_.layers[l].norm == Norm::fixed) find_factors(l, 0, features(l));
      T* const output = layer.output ? static_cast<T*>(layer.output)
                                     : workspace + plan.buffer_of_[l] * plan.scratch_;
      T* const activated = layer.activated ? static_cast<T*>(layer.activated) : output;
      layers.push_back({layer.sums ? static_cast<T*>(layer.sums) : activated, activated, output});
    }
    if (first.looks_at_input())
      first.input().place(buffers + plan.buffers_.elements(plan.threads_));
  }

  const T* input(int64_t l) const {
    l = plan.spec_.reads_with(l);
    return l > 0 ? layers[l - 1].output : static_cast<const T*>(memory.input);
  }
  int64_t input_stride(int64_t l) const { return plan.spec_.input_stride(l); }

  template <typename Stages>
  void work(const Stages& stages) const {
    if (first.looks_at_input()) {
      stages.run([&](Member member) { first.input().scan(member); });
      stages.wait();
    }
    PanelWeight<T>* const panels = first.panel_weight();
    if (panels && panels->is_ahead && !first.is_sparse()) {
      stages.run([&](Member member) { panels->unpack(member); });
      stages.wait();
    }
    for (int64_t l = 0; l < plan.products_.size(); ++l) {
      if (plan.follows(l)) continue;
      if (l > 0) stages.wait();
      if (l == 0 && first.is_sparse()) {
        stages.run([&](Member member) { compute_sparse(member); });
      } else if (is_by_columns(plan.spec_.layers[l].norm)) {
        stages.run([&](Member member) { compute_columns(l, member); });
      } else if (plan.spec_.layers[l].is_norm()) {
        stages.run([&](Member member) { compute_norm(l, member); });
      } else {
        compute(l, stages);
      }
    }
  }

  void compute_sparse(Member member) const {
    const LayerSpec& layer = plan.spec_.layers[0];
    const int64_t n = layer.out_features;
    first.input().forward(member,
                          {static_cast<const T*>(memory.layers[0].weight), layer.weight_stride, 1},
                          static_cast<const T*>(memory.layers[0].bias), first.panel_weight(),
                          plan.buffers_.of(buffers, member), layers[0].sums,
                          [&](int64_t i, int64_t rows, int64_t j, int64_t columns, const T* bias) {
                            finish(0, rows, columns, n, i, j, bias);
                          });
  }

  void compute_norm(int64_t l, Member member) const {
    const LayerSpec& layer = plan.spec_.layers[l];
    const LayerMemory& operands = memory.layers[l];
    const int64_t n = layer.out_features, stride = input_stride(l), batch = plan.spec_.head.batch;
    const int64_t end = member.end(batch);
    for (int64_t i = member.begin(batch); i < end; i += kNormRows) {
      const int64_t rows = std::min(kNormRows, end - i);
      plan.kernels_.norm[static_cast<int>(layer.norm)](rows, n, input(l) + i * stride, stride,
                                                       static_cast<const T*>(operands.weight),
                                                       layer.eps, layers[l].sums + i * n);
      finish(l, rows, n, n, i, 0, static_cast<const T*>(operands.bias));
    }
  }

  int64_t features(int64_t l) const { return plan.spec_.layers[l].out_features; }
  T* factor(int64_t l) const {
    return has_eps(plan.spec_.layers[l].norm) ? factors + plan.factors_of_[l] : nullptr;
  }

  // Of columns begin … end - 1 of a norm by columns.
  void find_factors(int64_t l, int64_t begin, int64_t end) const {
    const LayerMemory& operands = memory.layers[l];
    T* const to = factor(l) + begin;
    plan.kernels_.column_factors(end - begin, static_cast<const T*>(operands.weight) + begin,
                                 static_cast<const T*>(operands.variance) + begin,
                                 plan.spec_.layers[l].eps, to, to + aligned<T>(features(l)));
  }

  // Where the statistics are those of the batch, a member has columns of its own; else rows.
  void compute_columns(int64_t l, Member member) const {
    const int64_t n = features(l), batch = plan.spec_.head.batch;
    int64_t first = member.begin(batch), last = member.end(batch), begin = 0, end = n;
    if (plan.spec_.layers[l].norm == Norm::batch) {
      std::tie(begin, end) = member.vectors(n, plan.kernels_.width);
      if (begin >= end) return;
      first = 0, last = batch;
      const LayerMemory& operands = memory.layers[l];
      plan.kernels_.column_statistics(batch, end - begin, input(l) + begin, input_stride(l),
                                      static_cast<T*>(operands.mean) + begin,
                                      static_cast<T*>(operands.variance) + begin);
      find_factors(l, begin, end);
    }
    for (int64_t i = first; i < last; i += kNormRows)
      compute_piece(l, std::min(kNormRows, last - i), end - begin, i, begin);
  }

  // A piece of a norm by columns, whose first element is in row i and column j, to the output.
  void compute_piece(int64_t l, int64_t rows, int64_t columns, int64_t i, int64_t j) const {
    const LayerSpec& layer = plan.spec_.layers[l];
    const LayerMemory& operands = memory.layers[l];
    const int64_t n = features(l), stride = input_stride(l);
    const T *const x = input(l) + i * stride + j,
                   *const mean = static_cast<const T*>(operands.mean),
                   *const bias = static_cast<const T*>(operands.bias), *const scale = factor(l);
    T* const z = layers[l].sums + i * n + j;
    if (layer.norm == Norm::prelu) {
      const T* const weight = static_cast<const T*>(operands.weight);
      plan.kernels_.prelu(rows, columns, x, stride, layer.shares_weight ? weight : weight + j,
                          layer.shares_weight, z, n);
    } else {
      plan.kernels_.center(rows, columns, x, stride, mean ? mean + j : mean,
                           scale ? scale + j : scale, z, n);
    }
    finish(l, rows, columns, n, i, j, bias ? bias + j : bias);
  }

  template <typename Stages>
  void compute(int64_t l, const Stages& stages) const {
    const LayerSpec& layer = plan.spec_.layers[l];
    const T* const bias = static_cast<const T*>(memory.layers[l].bias);
    const int64_t n = layer.out_features;
    // A single column is handled as a row, by whole vectors, with its bias repeated.
    constexpr int64_t kRun = 64;
    T repeated[kRun];
    const bool column = n == 1;
    if (column && bias) std::fill(repeated, repeated + kRun, *bias);
    plan.buffers_.compute(
        stages, plan.products_[l],
        {input(l), static_cast<const T*>(memory.layers[l].weight), layers[l].sums}, buffers,
        [&](int64_t i, int64_t rows, int64_t j, int64_t columns) {
          if (!column) {
            finish(l, rows, columns, n, i, j, bias ? bias + j : nullptr);
            return;
          }
          for (const int64_t end = i + rows; i < end; i += kRun)
            finish(l, 1, std::min(kRun, end - i), 1, i, 0, bias ? repeated : nullptr);
        });
  }

  // The epilogue, from a piece of the sums to the output, where row i and column j are its first;
  // and to that of the next layer, where that follows.
  void finish(int64_t l, int64_t rows, int64_t columns, int64_t stride, int64_t i, int64_t j,
              const T* bias) const {
    finish_alone(l, rows, columns, stride, i, j, bias);
    if (plan.follows(l + 1)) compute_piece(l + 1, rows, columns, i, j);
  }
  void finish_alone(int64_t l, int64_t rows, int64_t columns, int64_t stride, int64_t i, int64_t j,
                    const T* bias) const {
    const LayerSpec& layer = plan.spec_.layers[l];
    const int64_t at = i * stride + j;
    T* const y = layers[l].activated + at;
    if (layer.activation != 0 || bias) {
      plan.kernels_.activate[layer.activation](rows, columns, layers[l].sums + at, y, stride, bias,
                                               layer.parameters);
    }
    if (layer.is_output_activated()) return;
    const T* const factor =
        layer.gates ? layers[l - 1].output : static_cast<const T*>(memory.layers[l].noise);
    const T* added = nullptr;
    int64_t added_stride = 0;
    if (layer.skip > 0) {
      const int64_t from = layer.skip_from(l);
      added_stride = stride == 1 ? 1 : input_stride(from);
      added = input(from) + i * added_stride + j;
    }
    plan.kernels_.combine(rows, columns, y, stride, factor ? factor + at : nullptr, added,
                          added_stride, layers[l].output + at, stride);
  }
};

template <typename T>
void ForwardPlan<T>::run(const NetworkMemory& memory, FirstLayer<T>& first, T* workspace) const {
  if (blocks_) {
    blocks_.record(kernels_);
    run_team(threads_, [&](Member member) {
      T* const own = workspace + member.index * blocks_.elements();
      blocks_.template each<T>(member, spec_, memory, [&](int64_t block, NetworkMemory& rows) {
        blocks_.plan(block).run_alone(rows, first, own);
      });
    });
    return;
  }
  const Run run(*this, memory, first, workspace);
  if (uses_library_) {
    run.work(StageByStage(threads_));
  } else {
    run_team(threads_, [&run](Member member) { run.work(InTeam(member)); });
  }
  if (first.panel_weight() && !first.is_sparse()) first.panel_weight()->is_ahead = false;
}

template <typename T>
void ForwardPlan<T>::run_alone(const NetworkMemory& memory, FirstLayer<T>& first,
                               T* workspace) const {
  Run(*this, memory, first, workspace).work(InTeam({0, 1}));
}

template class ForwardPlan<float>;
template class ForwardPlan<double>;

}  // namespace fastmlp::cpu
