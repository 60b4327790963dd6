#include "cpu/pass/backward.h"

#include <algorithm>

#include "network/optimizers.h"

namespace fastmlp::cpu {

namespace {

// take(layer, is_bias, elements) for each gradient that is wanted.
template <typename Take>
void each_gradient(const NetworkSpec& spec, const Take& take) {
  for (int64_t l = 0; l < spec.layers.size(); ++l) {
    const LayerSpec& layer = spec.layers[l];
    if (layer.weight_gradient != Gradient::none) take(l, false, layer.weight_elements());
    if (layer.bias_gradient != Gradient::none) take(l, true, layer.out_features);
  }
}

}  // namespace

template <typename T>
BackwardPlan<T>::BackwardPlan(const NetworkSpec& spec, const Machine<T>& machine,
                              bool skips_background, bool cuts)
    : spec_(spec),
      machine_(machine),
      kernels_(*machine.kernels),
      skips_background_(skips_background),
      layers_(spec.layers.size()),
      first_(spec.first_trained()) {
  const int64_t batch = spec.head.batch;
  double cost = 0;
  for (int64_t l = first_; l < layers_; ++l) {
    const int64_t n = layer(l).out_features, k = layer(l).in_features;
    const bool is_norm = layer(l).is_norm();
    const bool trains = layer(l).weight_gradient != Gradient::none && !is_norm;
    const bool passes = needs_input_gradient(l) && !is_norm;
    if (is_norm) {
      cost += 2 * norm_cost(batch, n);
      if (is_by_columns(layer(l).norm)) {
        columns_ = std::max(columns_, aligned<T>(n));
        if (layer(l).shares_weight) terms_ = std::max(terms_, aligned<T>(n));
      } else {
        terms_ = std::max(terms_, aligned<T>(batch * n));
      }
    }
    if (trains) cost += product_cost(n, k, batch);
    if (passes) cost += product_cost(batch, k, n);
    scratch_ = std::max(scratch_, aligned<T>(batch * n));
    if (l + 1 < layers_ && keeps_skipped(l))
      skipped_elements_ = std::max(skipped_elements_, aligned<T>(batch * n));
    const int64_t stride = grad_stride(l);
    if (layer(l).gates) scratches_ = kScratchesWithGates;
    weight_products_.push_back({kernels_,
                                {trains ? n : 0, k, batch, {1, stride}, {spec.input_stride(l), 1}},
                                machine.may_use_library,
                                layer(l).weight_gradient == Gradient::added});
    input_products_.push_back({kernels_,
                               {passes ? batch : 0, k, n, {stride, 1}, {layer(l).weight_stride, 1}},
                               machine.may_use_library,
                               spec.is_gated(l)});  // to what comes through the gate
    buffers_.add_product(weight_products_.back());
    buffers_.add_product(input_products_.back());
    uses_library_ = uses_library_ || weight_products_.back().is_by_library() ||
                    input_products_.back().is_by_library();
  }
  threads_ = team_size(cost, machine);
  if (layer(0).weight_gradient != Gradient::none && !layer(0).is_norm()) {
    sparse_ = SparsePlan<T>(kernels_, batch, layer(0).out_features, layer(0).in_features,
                            static_cast<int>(machine.max_threads));
  }
  if (skips_background_) {
    buffers_.add(sparse_.gradient_elements());
    // The row of db, after dz.
    scratch_ = std::max(scratch_, aligned<T>((batch + 1) * layer(0).out_features));
  }
  if (cuts && !uses_library_ && first_ < layers_) blocks_.cut(spec, machine, false);
  if (blocks_) {
    threads_ = std::min(threads_, static_cast<int>(blocks_.count()));
    each_gradient(spec_,
                  [&](int64_t, bool, int64_t elements) { gradients_ += aligned<T>(elements); });
  }
}

template <typename T>
bool BackwardPlan<T>::is_given(int64_t l) const {
  return l + 1 == layers_ && layer(l).activation == 0 && !layer(l).noise && !layer(l).gates &&
         !(l == 0 && skips_background_);
}

// A run of the plan: where everything lies.
template <typename T>
struct BackwardPlan<T>::Run {
  const BackwardPlan& plan;
  const NetworkMemory& memory;
  FirstLayer<T>& first;
  const bool looks;  // at the input, which forward has not done
  T* const scratch;
  // dL/dy of a layer whose input is added to y, for the layer below; of one layer at a time, as it
  // is read and written in the same place.
  T* const skipped;
  // What the weight's gradient of a norm sums up; of two layers in turns, as one is read while the
  // other is written.
  T* const terms;
  // Of a norm by columns; each member's own.
  T* const columns;
  T* const buffers;
  PanelWeight<T>* panels = nullptr;  // where the first layer's weight is updated in them

  Run(const BackwardPlan& plan, const NetworkMemory& memory, FirstLayer<T>& first, bool has_looked,
      T* workspace)
      : plan(plan),
        memory(memory),
        first(first),
        looks(plan.skips_background_ && !has_looked),
        scratch(workspace),
        skipped(scratch + plan.scratches_ * plan.scratch_),
        terms(skipped + plan.skipped_elements_),
        columns(terms + 2 * plan.terms_),
        buffers(columns + kColumns * plan.columns_) {
    if (looks) first.input().place(buffers + plan.buffers_.elements(plan.threads_));
    if (plan.skips_background_ && plan.layer(0).weight_gradient == Gradient::added)
      panels = first.panel_weight();
  }

  T* scratch_of(int64_t l) const { return scratch + (l % plan.scratches_) * plan.scratch_; }
  T* terms_of(int64_t l) const { return terms + (l % 2) * plan.terms_; }
  // dL/dz of a layer.
  const T* grad_sums(int64_t l) const { return plan.is_given(l) ? grad_output() : scratch_of(l); }
  const T* grad_output() const { return static_cast<const T*>(memory.grad_output); }
  int64_t input_stride(int64_t l) const { return plan.spec_.input_stride(l); }
  const T* input(int64_t l) const {
    l = plan.spec_.reads_with(l);
    return static_cast<const T*>(l > 0 ? memory.layers[l - 1].output : memory.input);
  }

  template <typename Stages>
  void work(const Stages& stages) const {
    const bool skips = plan.skips_background_;
    if (looks) {
      stages.run([&](Member member) { first.input().scan(member); });
      stages.wait();
    }
    const bool is_given = plan.is_given(plan.layers_ - 1);
    if (skips || !is_given) {
      stages.run([&](Member member) {
        if (skips) first.input().scan_features(member);
        if (!is_given) through_output(member);
      });
      stages.wait();
    }
    if (panels && panels->is_ahead && !first.input().gradient_pays()) {
      stages.run([&](Member member) { panels->unpack(member); });
      stages.wait();
    }
    // A layer's weight may change once all members have used it for dx: one layer later.
    for (int64_t l = plan.layers_ - 1; l >= plan.first_; --l) {
      // A norm's parameters come from the same pass over its input.
      const bool computes = plan.needs_input_gradient(l) || plan.layer(l).is_norm();
      if (computes) compute_input(l, stages);
      if (l + 1 < plan.layers_) compute_parameters(l + 1, stages);
      if (computes) stages.wait();
    }
    compute_parameters(plan.first_, stages);
  }

  // dL/dz of the last layer.
  void through_output(Member member) const {
    const int64_t last = plan.layers_ - 1, batch = plan.spec_.head.batch;
    const int64_t n = plan.layer(last).out_features, begin = member.begin(batch);
    const int64_t rows = member.end(batch) - begin, stride = plan.spec_.head.grad_output_stride;
    const bool flat = stride == n;  // one long row then
    through_activation(last, flat ? 1 : rows, flat ? rows * n : n, grad_output() + begin * stride,
                       stride, begin * n, scratch_of(last) + begin * n);
  }

  // dL/dz of a piece that lies `at` in the layer's output, from dL/dy of it.
  void through_activation(int64_t l, int64_t rows, int64_t columns, const T* incoming,
                          int64_t stride, int64_t at, T* dz) const {
    const LayerSpec& layer = plan.layer(l);
    const LayerMemory& kept = memory.layers[l];
    const int64_t n = layer.out_features;
    if (layer.noise) {
      plan.kernels_.combine(rows, columns, incoming, stride, static_cast<const T*>(kept.noise) + at,
                            nullptr, 0, dz, n);
      incoming = dz, stride = n;
    }
    if (layer.gates) {
      const auto times = [&](const void* factor, T* to) {
        plan.kernels_.combine(rows, columns, incoming, stride, static_cast<const T*>(factor) + at,
                              nullptr, 0, to, n);
      };
      if (l > plan.first_) {
        T* const gated = scratch_of(l - 1) + at;
        times(kept.activated, gated);
        through_activation(l - 1, rows, columns, gated, n, at, gated);
      }
      times(memory.layers[l - 1].output, dz);
      incoming = dz, stride = n;
    }
    if (layer.activation == 0 && incoming == dz) return;
    const void* const saved = !saves_output(layer.activation) ? kept.sums
                              : layer.is_output_activated()   ? kept.output
                                                              : kept.activated;
    // The identity saves nothing and reads nothing of it: its gradient is copied.
    plan.kernels_.activate_backward[layer.activation](
        rows, columns, incoming, stride, saved ? static_cast<const T*>(saved) + at : incoming,
        saved ? n : stride, dz, n, layer.parameters);
  }

  // What dW is written to, or added to by its scale.
  T* weight_sum(int64_t l) const {
    const LayerMemory& layer = memory.layers[l];
    return static_cast<T*>(plan.layer(l).weight_gradient == Gradient::added
                               ? layer.weight_update->parameter
                               : layer.weight_gradient);
  }
  T weight_scale(int64_t l) const {
    return plan.layer(l).weight_gradient == Gradient::added
               ? static_cast<T>(plain_rate(*memory.layers[l].weight_update))
               : T(1);
  }
  void update(const Update& u, int64_t begin, int64_t rows, int64_t columns, int64_t stride) const {
    plan.kernels_.update[u.optimizer](rows, columns, stride, begin, u, 1);
  }

  // dW = dzᵀ · x and db = the column sums of dz, and what becomes of them.
  template <typename Stages>
  void compute_parameters(int64_t l, const Stages& stages) const {
    const LayerSpec& layer = plan.layer(l);
    if (layer.shares_weight && layer.weight_gradient != Gradient::none)
      stages.run([&](Member member) { sum_shared_weight(l, member); });
    if (is_by_columns(layer.norm)) return;  // done with its input's
    const Update* const u =
        layer.weight_gradient == Gradient::written ? memory.layers[l].weight_update : nullptr;
    const int64_t k = layer.in_features;
    const auto weight_done = [&](int64_t i, int64_t rows, int64_t j, int64_t columns) {
      if (u) update(*u, i * k + j, rows, columns, k);
    };
    if (l == 0 && plan.skips_background_ && first.input().gradient_pays()) {
      stages.run([&](Member member) { compute_sparse(member, weight_done); });
      return;
    }
    if (layer.is_norm()) {
      if (layer.weight_gradient != Gradient::none)
        stages.run([&](Member member) { compute_norm_weight(l, member); });
    } else if (layer.weight_gradient != Gradient::none) {
      plan.buffers_.compute(stages, plan.weight_products_[l - plan.first_],
                            {grad_sums(l), input(l), weight_sum(l), weight_scale(l)}, buffers,
                            weight_done);
    }
    if (layer.bias_gradient == Gradient::none) return;
    stages.run([&](Member member) {
      const auto [begin, end] = member.vectors(layer.out_features, plan.kernels_.width);
      if (begin >= end) return;
      sum_columns(l, begin, end, static_cast<T*>(memory.layers[l].bias_gradient));
      update_bias(l, begin, end);
    });
  }

  // Over the columns, each of whose sums its member has found with the input's gradient. It is one
  // number: work for one.
  void sum_shared_weight(int64_t l, Member member) const {
    if (member.index > 0) return;
    const LayerMemory& layer = memory.layers[l];
    T* const gradient = static_cast<T*>(layer.weight_gradient);
    plan.kernels_.column_sums(plan.layer(l).out_features, 1, terms_of(l), 1, gradient);
    if (layer.weight_update) update(*layer.weight_update, 0, 1, 1, 1);
  }

  void compute_norm_weight(int64_t l, Member member) const {
    const LayerMemory& layer = memory.layers[l];
    const int64_t n = plan.layer(l).out_features;
    const auto [begin, end] = member.vectors(n, plan.kernels_.width);
    if (begin >= end) return;
    plan.kernels_.column_sums(plan.spec_.head.batch, end - begin, terms_of(l) + begin, n,
                              static_cast<T*>(layer.weight_gradient) + begin);
    if (layer.weight_update) update(*layer.weight_update, begin, 1, end - begin, n);
  }

  // The first layer's, over what differs from the background of its input.
  template <typename Done>
  void compute_sparse(Member member, const Done& weight_done) const {
    const LayerSpec& layer = plan.layer(0);
    const SparseInput<T>& x = first.input();
    const int64_t n = layer.out_features;
    const int64_t begin = x.begin(member), end = x.end(member);  // the outputs that are its own
    T* const sums = scratch_of(0) + plan.spec_.head.batch * n;
    if (begin < end) sum_columns(0, begin, end, sums);
    x.gradient(member, {grad_sums(0), plan.grad_stride(0), 1}, panels ? panels->panels : nullptr,
               panels ? weight_scale(0) : T(1), plan.buffers_.of(buffers, member),
               panels && panels->may_be_ahead ? nullptr : weight_sum(0),
               [&](int64_t i, int64_t rows) { weight_done(i, rows, 0, layer.in_features); });
    if (layer.bias_gradient == Gradient::none || begin >= end) return;
    std::copy(sums + begin, sums + end, static_cast<T*>(memory.layers[0].bias_gradient) + begin);
    update_bias(0, begin, end);
  }

  void update_bias(int64_t l, int64_t begin, int64_t end) const {
    if (const Update* const u = memory.layers[l].bias_update)
      update(*u, begin, 1, end - begin, plan.layer(l).out_features);
  }

  // db
  void sum_columns(int64_t l, int64_t begin, int64_t end, T* sums) const {
    plan.kernels_.column_sums(plan.spec_.head.batch, end - begin, grad_sums(l) + begin,
                              plan.grad_stride(l), sums + begin);
  }

  // dx = dz · W, or what a norm makes of dz; it becomes the dz of the layer below in the epilogue.
  // Of a gate, the sum of what comes through both of its layers.
  template <typename Stages>
  void compute_input(int64_t l, const Stages& stages) const {
    const LayerSpec& layer = plan.layer(l);
    const int64_t lowest = plan.spec_.reads_with(l);
    const bool below = lowest > plan.first_;
    T* const grad = below ? scratch_of(lowest - 1) : static_cast<T*>(memory.grad_input);
    if (layer.gates) {
      plan.buffers_.compute(stages, plan.input_products_[l - plan.first_],
                            {grad_sums(l), static_cast<const T*>(memory.layers[l].weight), grad},
                            buffers, [](int64_t, int64_t, int64_t, int64_t) {});
      return;
    }
    const bool keeps = below && plan.keeps_skipped(l - 1);
    const int64_t above = plan.skip_to(l);  // whose dL/dy comes on top
    const bool given_skipped = above + 1 == plan.layers_;
    const T* const added = given_skipped ? grad_output() : skipped;
    const int64_t n = layer.in_features,
                  added_stride = given_skipped ? plan.spec_.head.grad_output_stride : n;
    const auto epilogue = [&](int64_t i, int64_t rows, int64_t j, int64_t columns) {
      const int64_t at = i * n + j;
      T* dy = grad + at;
      if (above >= 0 || keeps) {
        T* const sum = keeps ? skipped + at : dy;
        plan.kernels_.combine(rows, columns, dy, n, nullptr,
                              above >= 0 ? added + i * added_stride + j : nullptr, added_stride,
                              sum, n);
        dy = sum;
      }
      if (below) through_activation(l - 1, rows, columns, dy, n, at, grad + at);
    };
    const T* const weight = static_cast<const T*>(memory.layers[l].weight);
    if (is_by_columns(layer.norm)) {
      stages.run([&](Member member) { compute_columns(l, member, grad, epilogue); });
      return;
    }
    if (layer.is_norm()) {
      stages.run([&](Member member) {
        const int64_t batch = plan.spec_.head.batch, end = member.end(batch);
        const int64_t stride = input_stride(l), dz_stride = plan.grad_stride(l);
        for (int64_t i = member.begin(batch); i < end; i += kNormRows) {
          const int64_t rows = std::min(kNormRows, end - i);
          plan.kernels_.norm_backward[static_cast<int>(layer.norm)](
              rows, n, input(l) + i * stride, stride, weight, layer.eps,
              grad_sums(l) + i * dz_stride, dz_stride, grad ? grad + i * n : nullptr,
              terms_of(l) + i * n);
          if (grad) epilogue(i, rows, 0, n);
        }
      });
      return;
    }
    plan.buffers_.compute(stages, plan.input_products_[l - plan.first_],
                          {grad_sums(l), weight, grad}, buffers, epilogue);
  }

  // A norm by columns: of this member's columns, the gradients of weight and bias and what becomes
  // of them, which nobody else reads, and dx. With h = (x - mean) · inverse, the inverse deviation:
  // dx = factor · (dz - mean of dz - h · mean of dz·h), where the statistics are those of the
  // batch, else factor · dz.
  template <typename Epilogue>
  void compute_columns(int64_t l, Member member, T* grad, const Epilogue& epilogue) const {
    const LayerSpec& layer = plan.layer(l);
    const LayerMemory& operands = memory.layers[l];
    const int64_t n = layer.out_features, batch = plan.spec_.head.batch;
    const auto [begin, end] = member.vectors(n, plan.kernels_.width);
    const int64_t count = end - begin, stride = input_stride(l), dz_stride = plan.grad_stride(l);
    if (count <= 0) return;
    const T* const dz = grad_sums(l) + begin;
    if (layer.norm == Norm::prelu) return compute_prelu(l, begin, count, grad, epilogue);
    const T *x = nullptr, *mean = nullptr, *factor = nullptr, *offset = nullptr, *slope = nullptr;
    if (has_eps(layer.norm)) {
      const auto of_columns = [&](int i) { return columns + i * plan.columns_ + begin; };
      T *const scale = of_columns(0), *const inverse = of_columns(1), *const sums = of_columns(2),
               *const products = of_columns(3);
      plan.kernels_.column_factors(count, static_cast<const T*>(operands.weight) + begin,
                                   static_cast<const T*>(operands.variance) + begin, layer.eps,
                                   scale, inverse);
      factor = scale;
      const bool is_batch = layer.norm == Norm::batch;
      if (is_batch || layer.weight_gradient != Gradient::none) {
        x = input(l) + begin;
        mean = static_cast<const T*>(operands.mean) + begin;
        plan.kernels_.column_products(batch, count, dz, dz_stride, x, stride, mean, sums, products);
      } else if (layer.bias_gradient != Gradient::none) {
        plan.kernels_.column_sums(batch, count, dz, dz_stride, sums);
      }
      if (layer.weight_gradient != Gradient::none) {
        T* const to = static_cast<T*>(operands.weight_gradient) + begin;
        for (int64_t j = 0; j < count; ++j) to[j] = products[j] * inverse[j];
        if (operands.weight_update) update(*operands.weight_update, begin, 1, count, n);
      }
      if (layer.bias_gradient != Gradient::none) {
        std::copy(sums, sums + count, static_cast<T*>(operands.bias_gradient) + begin);
        update_bias(l, begin, end);
      }
      if (is_batch) {
        for (int64_t j = 0; j < count; ++j) {
          sums[j] /= static_cast<T>(batch);
          products[j] *= -inverse[j] * inverse[j] / static_cast<T>(batch);
        }
        offset = sums, slope = products;
      }
    }
    if (!grad) return;
    for (int64_t i = 0; i < batch; i += kNormRows) {
      const int64_t rows = std::min(kNormRows, batch - i);
      plan.kernels_.center_backward(rows, count, dz + i * dz_stride, dz_stride,
                                    x ? x + i * stride : x, stride, mean, offset, slope, factor,
                                    grad + i * n + begin, n);
      epilogue(i, rows, begin, count);
    }
  }

  // Of columns begin … begin + count - 1.
  template <typename Epilogue>
  void compute_prelu(int64_t l, int64_t begin, int64_t count, T* grad,
                     const Epilogue& epilogue) const {
    const LayerSpec& layer = plan.layer(l);
    const LayerMemory& operands = memory.layers[l];
    const int64_t n = layer.out_features, batch = plan.spec_.head.batch;
    const int64_t stride = input_stride(l), dz_stride = plan.grad_stride(l);
    const T *const dz = grad_sums(l) + begin, *const x = input(l) + begin,
                   *const weight =
                       static_cast<const T*>(operands.weight) + (layer.shares_weight ? 0 : begin);
    if (layer.weight_gradient != Gradient::none) {
      T* const sums = layer.shares_weight ? terms_of(l) : static_cast<T*>(operands.weight_gradient);
      plan.kernels_.prelu_sums(batch, count, dz, dz_stride, x, stride, sums + begin);
    }
    if (grad) {
      for (int64_t i = 0; i < batch; i += kNormRows) {
        const int64_t rows = std::min(kNormRows, batch - i);
        plan.kernels_.prelu_backward(rows, count, dz + i * dz_stride, dz_stride, x + i * stride,
                                     stride, weight, layer.shares_weight, grad + i * n + begin, n);
        epilogue(i, rows, begin, count);
      }
    }
    // The weight changes once nobody needs it any more.
    if (operands.weight_update && !layer.shares_weight)
      update(*operands.weight_update, begin, 1, count, n);
  }
};

template <typename T>
void BackwardPlan<T>::run(const NetworkMemory& memory, FirstLayer<T>& first, bool has_looked,
                          T* workspace) const {
  if (first_ == layers_) return;
  if (blocks_) {
    blocks_.record(kernels_);
    T* const gradients = workspace + threads_ * blocks_.elements();
    run_team(threads_, [&](Member member) {
      T* const own = workspace + member.index * blocks_.elements();
      blocks_.template each<T>(member, spec_, memory, [&](int64_t block, NetworkMemory& rows) {
        run_block(block, rows, first, own, gradients);
      });
      member.wait();
      sum_blocks(member, memory, gradients);
    });
    return;
  }
  const Run run(*this, memory, first, has_looked, workspace);
  if (uses_library_) {
    run.work(StageByStage(threads_));
  } else {
    run_team(threads_, [&run](Member member) { run.work(InTeam(member)); });
  }
  if (run.panels) run.panels->is_ahead = run.panels->may_be_ahead && first.input().gradient_pays();
}

template <typename T>
void BackwardPlan<T>::run_block(int64_t block, NetworkMemory& rows, FirstLayer<T>& first,
                                T* workspace, T* gradients) const {
  T* next = gradients + block * gradients_;
  each_gradient(spec_, [&](int64_t l, bool is_bias, int64_t elements) {
    LayerMemory& layer = rows.layers[l];
    (is_bias ? layer.bias_gradient : layer.weight_gradient) = next;
    (is_bias ? layer.bias_update : layer.weight_update) = nullptr;
    next += aligned<T>(elements);
  });
  Run(blocks_.plan(block), rows, first, true, workspace).work(InTeam({0, 1}));
}

template <typename T>
void BackwardPlan<T>::sum_blocks(Member member, const NetworkMemory& memory,
                                 const T* gradients) const {
  each_gradient(spec_, [&](int64_t l, bool is_bias, int64_t elements) {
    const LayerMemory& layer = memory.layers[l];
    const auto [begin, end] = member.vectors(elements, kernels_.width);
    if (const int64_t n = end - begin; n > 0) {
      T* const sum = static_cast<T*>(is_bias ? layer.bias_gradient : layer.weight_gradient);
      kernels_.column_sums(blocks_.count(), n, gradients + begin, gradients_, sum + begin);
      if (const Update* const u = is_bias ? layer.bias_update : layer.weight_update)
        kernels_.update[u->optimizer](1, n, n, begin, *u, 1);
    }
    gradients += aligned<T>(elements);
  });
}

template class BackwardPlan<float>;
template class BackwardPlan<double>;

}  // namespace fastmlp::cpu
