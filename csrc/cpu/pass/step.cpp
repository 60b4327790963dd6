#include "cpu/pass/step.h"

#include <algorithm>
#include <memory>

#include "cpu/memory.h"
#include "cpu/pass/loss.h"
#include "cpu/pass/plans.h"
#include "cpu/pass/workspace.h"
#include "network/saved.h"

namespace fastmlp::cpu {

namespace {

// A sequence of steps. It lies on the stack, as does the memory of a small network's: a dense step
// of it asks the system for none.
template <typename T>
class Steps {
 public:
  Steps(const StepArguments& arguments, const Machine<T>& machine)
      : arguments_(arguments), machine_(machine), memory_(arguments.memory) {}
  ~Steps() {
    if (panels_.panels) panels_.flush(static_cast<int>(machine_.max_threads));
  }
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;

  LossResult step(StepBatch& batch);

 private:
  // Plans for batches of so many rows, and memory for them.
  void plan(int64_t rows, int64_t input_stride);
  // Whether the batch is cut into blocks, each of which goes through the whole step while it is in
  // the cache: what forward leaves for backward is not written to memory.
  bool goes_in_blocks() const {
    return forward_->blocks() && backward_->blocks() && spec_.layers.back().out_features > 0;
  }
  // Frozen layers are work for forward alone.
  int block_threads() const { return std::max(forward_->threads(), backward_->threads()); }
  // Of what a block's forward leaves for its backward, and of all that a member needs for a block.
  int64_t saved_block_elements() const {
    return aligned<T>(saved_elements(forward_->blocks().plan(0).spec()));
  }
  int64_t block_elements() const {
    return saved_block_elements() + std::max(aligned<T>(forward_->blocks().elements()),
                                             aligned<T>(backward_->blocks().elements()));
  }
  LossResult run_blocks(Loss& loss, FirstLayer<T>& first, T* workspace);
  bool clips() const { return arguments_.max_grad_norm > 0; }
  bool adds_to_first_weight() const { return spec_.layers[0].weight_gradient == Gradient::added; }
  PanelWeight<T>* panel_weight(const FirstLayer<T>& first);
  T* workspace(int64_t elements);

  const StepArguments& arguments_;
  const Machine<T> machine_;
  NetworkSpec spec_;  // of the present plans
  NetworkMemory memory_;
  std::shared_ptr<const ForwardPlan<T>> forward_;
  std::shared_ptr<const BackwardPlan<T>> backward_, sparse_backward_;
  Workspace<T> block_;       // all that the steps need
  at::Tensor panels_block_;  // beside it, for a sparse input, which is found when it is looked at
  at::Tensor larger_;
  T* workspace_ = nullptr;
  int64_t workspace_elements_ = 0;
  PanelWeight<T> panels_;
};

template <typename T>
void Steps<T>::plan(int64_t rows, int64_t input_stride) {
  if (forward_ && spec_.head.batch == rows && spec_.head.input_stride == input_stride) return;
  const int64_t features = arguments_.network.layers.back().out_features;
  spec_ = arguments_.network;
  spec_.head.batch = rows;
  spec_.head.input_stride = input_stride;
  spec_.head.grad_output_stride = features;
  const Updates& updates = arguments_.updates;
  int64_t gradients = 0;
  const auto spec_of = [&](int64_t i) -> LayerSpec& {
    return spec_.layers[arguments_.parameters[i].layer];
  };
  for (int64_t i = 0; i < updates.size(); ++i) {
    // Without clipping each gradient is used up as soon as it is there, and that of a weight whose
    // update is plain is never written, unless it is a sum of several parts: each of them would
    // round the weight anew.
    if (!arguments_.parameters[i].is_bias && !spec_of(i).is_norm() && !clips() &&
        is_plain(*updates[i]) && rows <= machine_.kernels->tuning.block_depth) {
      spec_of(i).weight_gradient = Gradient::added;
    } else {
      gradients += aligned<T>(updates[i]->elements);
    }
  }
  keep_for_gradients(spec_);
  forward_ = forward_plan<T>(spec_, machine_);
  backward_ = backward_plan<T>(spec_, machine_, false);
  sparse_backward_ = nullptr;

  const int64_t outputs = aligned<T>(rows * features);
  int64_t saved = 0;
  if (goes_in_blocks()) {
    workspace_elements_ = block_threads() * block_elements() + backward_->gradient_elements();
  } else {
    saved = aligned<T>(saved_elements(spec_));
    workspace_elements_ = std::max(aligned<T>(forward_->workspace_elements()),
                                   aligned<T>(backward_->workspace_elements()));
  }
  T* next = block_.reserve(2 * outputs + saved + gradients + workspace_elements_);
  const auto take = [&next](int64_t elements) {
    T* const begin = next;
    next += elements;
    return begin;
  };
  memory_.layers.back().output = take(outputs);
  memory_.grad_output = take(outputs);
  if (!goes_in_blocks()) place_saved(spec_, take(saved), memory_);
  for (int64_t i = 0; i < updates.size(); ++i) {
    LayerMemory& layer = memory_.layers[arguments_.parameters[i].layer];
    const bool is_bias = arguments_.parameters[i].is_bias;
    const bool written = is_bias || spec_of(i).weight_gradient == Gradient::written;
    T* const gradient = written ? take(aligned<T>(updates[i]->elements)) : nullptr;
    (is_bias ? layer.bias_gradient : layer.weight_gradient) = gradient;
    updates[i]->gradient = gradient;
    if (!clips()) (is_bias ? layer.bias_update : layer.weight_update) = updates[i];
  }
  workspace_ = next;
}

// The first layer's weight in panels, from the first sparse input on.
template <typename T>
PanelWeight<T>* Steps<T>::panel_weight(const FirstLayer<T>& first) {
  if (!adds_to_first_weight()) return nullptr;
  if (!panels_.panels) {
    if (!first.looks_at_input()) return nullptr;
    panels_.layout = first.plan().panels();
    panels_block_ = uninitialized({panels_.layout.elements()}, kScalarType<T>);
    panels_.panels = panels_block_.mutable_data_ptr<T>();
    panels_.weight = static_cast<T*>(memory_.layers[0].weight_update->parameter);
    panels_.may_be_ahead = arguments_.is_alone;
  }
  return &panels_;
}

template <typename T>
T* Steps<T>::workspace(int64_t elements) {
  if (elements <= workspace_elements_) return workspace_;
  if (!larger_.defined() || larger_.numel() < elements)
    larger_ = uninitialized({elements}, kScalarType<T>);
  return larger_.mutable_data_ptr<T>();
}

template <typename T>
LossResult Steps<T>::run_blocks(Loss& loss, FirstLayer<T>& first, T* workspace) {
  const auto& forward = forward_->blocks();
  forward.record(*machine_.kernels, "steps");
  prepare_loss<T>(loss);
  InlineVector<LossResult, 64> sums;
  sums.resize(forward.count());
  if (!clips()) advance(arguments_.updates);  // nothing is left that may fail
  T* const gradients = workspace + block_threads() * block_elements();
  run_team(block_threads(), [&](Member member) {
    T* const saved = workspace + member.index * block_elements();
    T* const own = saved + saved_block_elements();
    forward.template each<T>(member, spec_, memory_, [&](int64_t block, NetworkMemory& rows) {
      const ForwardPlan<T>& plan = forward.plan(block);
      place_saved(plan.spec(), saved, rows);
      plan.run_alone(rows, first, own);
      const int64_t begin = forward.begin(block);
      sums[block] = sum_of_rows<T>(loss, begin, begin + plan.spec().head.batch);
      backward_->run_block(block, rows, first, own, gradients);
    });
    member.wait();
    backward_->sum_blocks(member, memory_, gradients);
  });
  return loss_of(loss, sums.begin(), sums.size());
}

template <typename T>
LossResult Steps<T>::step(StepBatch& batch) {
  plan(batch.rows, batch.input_stride);
  memory_.input = batch.input;
  for (int64_t l = 0; l < batch.noise.size(); ++l) memory_.layers[l].noise = batch.noise[l];

  FirstLayer<T> first(forward_->sparse(),
                      {static_cast<const T*>(batch.input), batch.input_stride, 1});
  first.keep(panel_weight(first));
  const int64_t forward_elements =
      goes_in_blocks() ? 0 : aligned<T>(forward_->workspace_elements() + first.elements());
  const bool may_skip = first.looks_at_input() && spec_.layers[0].weight_gradient != Gradient::none;
  if (may_skip && !sparse_backward_) sparse_backward_ = backward_plan<T>(spec_, machine_, true);
  // What forward has found of the input is still there in backward.
  int64_t elements = forward_elements;
  if (may_skip) elements += sparse_backward_->workspace_elements();
  T* const memory = workspace(std::max(elements, workspace_elements_));

  Loss& loss = batch.loss;
  loss.batch = batch.rows;
  loss.features = spec_.layers.back().out_features;
  loss.prediction = memory_.layers.back().output;
  loss.gradient = const_cast<void*>(memory_.grad_output);  // ours
  const Updates& updates = arguments_.updates;
  LossResult result;
  if (goes_in_blocks()) {
    result = run_blocks(loss, first, memory);
  } else {
    forward_->run(memory_, first, memory);
    for (const AveragePlaces& one : arguments_.averages) {
      const LayerMemory& layer = memory_.layers[one.layer];
      add_batch(one, batch.rows, static_cast<const T*>(layer.mean),
                static_cast<const T*>(layer.variance));
    }
    result = compute_loss<T>(loss, machine_.max_threads);
    if (updates.empty()) return result;
    if (!clips()) advance(updates);
    const bool skips = may_skip && first.is_sparse();
    const BackwardPlan<T>& backward = skips ? *sparse_backward_ : *backward_;
    backward.run(memory_, first, true, skips ? memory + forward_elements : memory);
  }
  if (clips()) {
    const double scale =
        clipping_factor<T>(updates, arguments_.max_grad_norm, machine_.max_threads);
    advance(updates);  // nothing is left that may fail
    apply<T>(updates, scale, machine_.max_threads);
  }
  for (Update* const update : updates) update->fresh = false;
  return result;
}

}  // namespace

template <typename T>
void run_steps(const StepArguments& arguments, StepFeed& feed, const Machine<T>& machine) {
  Steps<T> steps(arguments, machine);
  StepBatch batch;
  while (feed.next(batch)) feed.done(steps.step(batch));
}

template void run_steps(const StepArguments&, StepFeed&, const Machine<float>&);
template void run_steps(const StepArguments&, StepFeed&, const Machine<double>&);

}  // namespace fastmlp::cpu
