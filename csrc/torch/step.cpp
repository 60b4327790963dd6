#include "torch/step.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "torch/lower.h"
#include "torch/noise.h"
#include "torch/overlap.h"

namespace fastmlp {
namespace {

// A dense tensor on the CPU whose memory holds its values: what a lazy view only promises to
// compute is computed.
at::Tensor materialized(const char* name, const at::Tensor& tensor) {
  TORCH_CHECK(tensor.device().is_cpu(), "fastmlp.TrainStep: expected the ", name,
              " on the CPU, got it on ", tensor.device());
  TORCH_CHECK(tensor.layout() == at::kStrided && !tensor.is_nested() && !tensor.is_quantized() &&
                  !tensor.key_set().has(c10::DispatchKey::Python),
              "fastmlp.TrainStep: expected the ", name,
              " to be a plain dense tensor, got one of layout ", tensor.layout(), ", type ",
              tensor.toString());
  if (tensor._is_zerotensor()) return at::zeros(tensor.sizes(), tensor.options());
  return tensor.resolve_conj().resolve_neg();
}

void check_shape(const char* name, const at::Tensor& tensor, at::IntArrayRef expected) {
  TORCH_CHECK_VALUE(tensor.sizes() == expected, "fastmlp.TrainStep: expected ", name, " of shape ",
                    expected, " like the model's output, got ", tensor.sizes());
}

// In a shape that expands to an output's, by the rules of torch.nn.functional.gaussian_nll_loss.
at::Tensor checked_variance(const at::Tensor& variance, at::IntArrayRef sizes) {
  TORCH_CHECK(at::isFloatingType(variance.scalar_type()),
              "fastmlp.TrainStep: expected floating point variances, got ", variance.scalar_type());
  TORCH_CHECK_VALUE(!at::any(at::lt(variance, 0)).item<bool>(),
                    "fastmlp.TrainStep: var has negative entry/entries");
  if (variance.sizes() == sizes) return variance;
  if (variance.sizes() == sizes.slice(0, sizes.size() - 1)) return variance.unsqueeze(-1);
  int64_t others = 0;  // of the sizes that differ, their sum
  const bool is_alike = variance.dim() == static_cast<int64_t>(sizes.size());
  for (int64_t d = 0; is_alike && d < variance.dim(); ++d)
    others += variance.size(d) == sizes[d] ? 0 : variance.size(d);
  TORCH_CHECK_VALUE(others == 1, "fastmlp.TrainStep: var is of incorrect size ", variance.sizes(),
                    " beside a model output of shape ", sizes);
  return variance;
}

// The loss's operands as the kernels read them, and what keeps their memory.
struct LossOperands {
  c10::SmallVector<int64_t, 1024> classes;
  at::Tensor target, operands[kMostLossOperands];
};

// Of the classes, which are places in memory: what is checked is what is used.
void check_classes(const int64_t* begin, int64_t count, int64_t ignore_index, int64_t features) {
  for (const int64_t* label = begin; label != begin + count; ++label) {
    TORCH_CHECK_INDEX(*label == ignore_index || (*label >= 0 && *label < features), "Target ",
                      *label, " is out of bounds.");
  }
}

// Its kind among those of its name.
int kind_for(const LossArguments& loss, const at::Tensor& target) {
  const auto& all = losses();
  const int next = loss.kind + 1;
  const bool has_two =
      next < static_cast<int>(all.size()) && std::strcmp(all[next].name, all[loss.kind].name) == 0;
  return has_two && at::isFloatingType(target.scalar_type()) ? next : loss.kind;
}

// What does not depend on the batch.
Loss begin_loss(const LossArguments& arguments, int kind) {
  Loss loss;
  loss.kind = kind;
  loss.reduction = arguments.reduction;
  loss.ignore_index = arguments.ignore_index;
  std::copy_n(arguments.options, kMostLossOptions, loss.options);
  const LossInfo& info = losses()[loss.kind];
  if (info.fault) {
    const std::string fault = info.fault(loss);
    TORCH_CHECK(fault.empty(), "fastmlp.TrainStep: ", fault);
  }
  return loss;
}

Loss begin_loss(const LossArguments& arguments, const at::Tensor& target) {
  return begin_loss(arguments, kind_for(arguments, target));
}

// The loss's tensors beside the target, for an output of these sizes: contiguous, of its dtype.
void take_operands(const LossArguments& arguments, at::IntArrayRef sizes, at::ScalarType dtype,
                   Loss& loss, LossOperands& operands) {
  const LossInfo& info = losses()[loss.kind];
  const int64_t features = sizes.back();
  for (int i = 0; i < kMostLossOperands; ++i) {
    const auto& tensor = arguments.operands[i];
    if (!tensor) continue;
    const auto [name, kind] = info.operands[i];
    const bool per_class = kind == LossOperandInfo::per_class;
    TORCH_CHECK(!per_class || (tensor->dim() == 1 && tensor->numel() == features),
                "weight tensor should be defined either for all ", features,
                " classes or no classes but got weight tensor of shape: ", tensor->sizes());
    at::Tensor whole = materialized((std::string("loss's ") + name).c_str(), *tensor);
    if (kind == LossOperandInfo::variance) whole = checked_variance(whole, sizes);
    operands.operands[i] =
        whole.to(dtype).expand(per_class ? at::IntArrayRef(features) : sizes).contiguous();
    loss.operands[i] = operands.operands[i].const_data_ptr();
  }
}

void take_target(const at::Tensor& given, at::IntArrayRef sizes, at::ScalarType dtype, Loss& loss,
                 LossOperands& operands) {
  const at::Tensor target = materialized("target", given);
  const Target kind = losses()[loss.kind].target;
  if (kind == Target::classes) {
    check_shape("class targets", target, sizes.slice(0, sizes.size() - 1));
    TORCH_CHECK(target.scalar_type() == at::kLong || target.scalar_type() == at::kByte,
                "expected scalar type Long or Byte for class targets, got ", target.scalar_type());
    // A copy: another thread may write to the caller's while no lock is held.
    const at::Tensor classes = target.to(at::kLong).contiguous();
    const int64_t* const from = classes.const_data_ptr<int64_t>();
    operands.classes.assign(from, from + classes.numel());
    check_classes(operands.classes.data(), classes.numel(), loss.ignore_index, sizes.back());
    loss.classes = operands.classes.data();
  } else {
    check_shape("targets", target, sizes);
    TORCH_CHECK(at::isFloatingType(target.scalar_type()) ||
                    (kind == Target::counts && at::isIntegralType(target.scalar_type(), false)),
                "fastmlp.TrainStep: expected ", kind == Target::counts ? "real" : "floating point",
                " targets, got ", target.scalar_type());
    operands.target = target.to(dtype).contiguous();
    loss.target = operands.target.const_data_ptr();
  }
}

void take_output(at::IntArrayRef sizes, Loss& loss) {
  // torch takes dimension 1 for the classes, a layer's outputs are the last.
  TORCH_CHECK_VALUE(!losses()[loss.kind].per_row || sizes.size() <= 2,
                    "fastmlp.TrainStep: ", losses()[loss.kind].name,
                    " takes a model output of one or two dimensions here, got shape ", sizes);
  loss.samples = sizes.front();
}

void* state_of(const at::Tensor& state, const at::Tensor& parameter) {
  if (!state.defined()) return nullptr;
  TORCH_CHECK(state.sizes() == parameter.sizes() && state.layout() == at::kStrided &&
                  state.is_contiguous() && !state.is_neg() && !state._is_zerotensor() &&
                  state.scalar_type() == parameter.scalar_type() && state.device().is_cpu(),
              "fastmlp.TrainStep: expected the optimizer's state contiguous, of shape ",
              parameter.sizes(), " and dtype ", parameter.scalar_type(),
              " on the CPU, no lazy view, got shape ", state.sizes(), " and dtype ",
              state.scalar_type(), " on ", state.device());
  return state.mutable_data_ptr();
}

// All the memory that a step writes or keeps between its writes. Parameters are written in place,
// while the passes still read others.
Spans parameter_memory(at::TensorList operands, const ParameterUpdates& updates,
                       const Averages& averages) {
  Spans spans;
  c10::SmallVector<bool, 32> trained(operands.size(), false);
  for (const ParameterUpdate& one : updates) {
    const at::Tensor& parameter = operands[one.operand];
    TORCH_CHECK(parameter.is_contiguous(),
                "fastmlp.TrainStep: expected contiguous parameters, got one of shape ",
                parameter.sizes(), " and strides ", parameter.strides());
    trained[one.operand] = true;
    spans.add(parameter, true);
    for (const at::Tensor& state : one.states) spans.add(state, true);
    for (const at::Tensor& scalar : one.scalars) spans.add(scalar, true);
  }
  for (const RunningAverage& one : averages) {
    spans.add(one.mean, true);
    spans.add(one.variance, true);
  }
  for (size_t i = 0; i < operands.size(); ++i) {
    if (!trained[i]) spans.add(operands[i], false);
  }
  TORCH_CHECK(spans.are_apart(),
              "fastmlp.TrainStep: layers share a parameter, or two of the parameters and of the "
              "optimizer's tensors lie in the same memory. Use the model's own forward and "
              "backward instead");
  return spans;
}

// Some steps of a network: what is told to the backend, and what belongs to it here.
class Training {
 public:
  Training(const Arguments& arguments, ParameterUpdates& updates, const Averages& averages,
           double max_grad_norm, bool is_alone)
      : arguments_(arguments),
        updates_(updates),
        averages_(averages),
        backend_(*backend_of(arguments.input.device().type())),
        lowered_(lower(arguments)) {
    step_.network = lowered_.spec;
    step_.memory = lowered_.memory;
    step_.max_grad_norm = max_grad_norm;
    step_.is_alone = is_alone;
    for (const RunningAverage& one : averages) step_.averages.push_back(one.lowered());
    const Program& program = arguments.program;
    for (int64_t l = 0; l < program.layers.size(); ++l)
      step_.network.layers[l].noise = program.layers[l].dropout > 0;
    for (ParameterUpdate& one : updates) {
      const at::Tensor& parameter = arguments.operands[one.operand];
      one.update.elements = parameter.numel();
      one.update.parameter = parameter.mutable_data_ptr();
      for (int s = 0; s < kMostStates; ++s)
        one.update.states[s] = state_of(one.states[s], parameter);
      step_.updates.push_back(&one.update);
      int64_t l = 0;
      while (program.layers[l].weight != one.operand && program.layers[l].bias != one.operand) ++l;
      const bool is_bias = program.layers[l].bias == one.operand;
      step_.parameters.push_back({l, is_bias});
      LayerSpec& layer = step_.network.layers[l];
      (is_bias ? layer.bias_gradient : layer.weight_gradient) = Gradient::written;
    }
  }

  // What the steps have changed is told to autograd.
  ~Training() {
    if (!has_stepped_) return;
    for (const RunningAverage& one : averages_) one.bump_version();
    for (const ParameterUpdate& one : updates_) {
      const at::Tensor& parameter = arguments_.operands[one.operand];
      if (!parameter.is_inference()) parameter.unsafeGetTensorImpl()->bump_version();
    }
  }
  Training(const Training&) = delete;
  Training& operator=(const Training&) = delete;

  const Lowered& lowered() const { return lowered_; }
  const Backend& backend() const { return backend_; }

  // A step with each batch that next(batch) fills in, till it is false; done(result) after each.
  template <typename Next, typename Done>
  void run(const Next& next, const Done& done) {
    struct Calls final : StepFeed {
      Training& training;
      const Next& next_batch;
      const Done& when_done;

      Calls(Training& training, const Next& next, const Done& done)
          : training(training), next_batch(next), when_done(done) {}
      bool next(StepBatch& batch) override {
        if (!next_batch(batch)) return false;
        check_rows(training.arguments_.program, batch.rows,
                   training.lowered_.spec.layers[0].in_features);
        training.draw(batch);
        return true;
      }
      void done(const LossResult& result) override {
        training.has_stepped_ = true;
        when_done(result);
      }
    };
    Calls calls(*this, next, done);
    backend_.run_steps(step_, calls);
  }

 private:
  void draw(StepBatch& batch) {
    const Program& program = arguments_.program;
    if (!has_dropout(program)) return;
    const Dtype dtype = lowered_.spec.head.dtype;
    noise_.resize(program.layers.size());
    batch.noise.resize(program.layers.size());
    for (int64_t l = 0; l < program.layers.size(); ++l) {
      if (program.layers[l].dropout <= 0) continue;
      const int64_t elements = batch.rows * lowered_.spec.layers[l].out_features;
      if (!noise_[l].defined() || noise_[l].numel() < elements)
        noise_[l] = backend_.allocate({elements}, arguments_.input.scalar_type());
      draw_noise(backend_, dtype, program.layers[l].dropout, elements,
                 noise_[l].mutable_data_ptr());
      batch.noise[l] = noise_[l].const_data_ptr();
    }
  }

  const Arguments& arguments_;
  ParameterUpdates& updates_;
  const Averages& averages_;
  const Backend& backend_;
  const Lowered lowered_;
  StepArguments step_;
  c10::SmallVector<at::Tensor, 8> noise_;
  bool has_stepped_ = false;
};

at::DimVector output_sizes(const Arguments& arguments) {
  at::DimVector sizes(arguments.input.sizes());
  sizes.back() = arguments.out_features(arguments.program.layers.size() - 1);
  return sizes;
}

// A loss as torch would return it, of the network's dtype.
double rounded(double loss, at::ScalarType dtype) {
  return dtype == at::kFloat ? static_cast<double>(static_cast<float>(loss)) : loss;
}

// Brings the rows of a data set to the steps, one batch after the other.
class Feed {
 public:
  // apart: whether the data's memory is nothing that the steps write.
  Feed(const Batches& batches, const LossArguments& arguments, const Training& training, bool apart)
      : batches_(batches),
        arguments_(arguments),
        training_(training),
        dtype_(batches.buffer.scalar_type()),
        apart_(apart),
        order_(batches.order.const_data_ptr<int64_t>()),
        features_(training.lowered().spec.layers.back().out_features),
        loss_(begin_loss(arguments, batches.targets)),
        variance_(variance_of(losses()[loss_.kind])) {
    if (variance_ >= 0) {
      const at::Tensor& all = *arguments.operands[variance_];
      TORCH_CHECK_VALUE(all.dim() > 0 && all.size(0) == batches.targets.size(0),
                        "fastmlp.TrainStep.fit: expected as many variances as targets, got shapes ",
                        all.sizes(), " and ", batches.targets.sizes());
      variances_ = materialized("variances", all);
    }
    const at::Tensor& targets = batches_.targets;
    copies_target_ = targets.is_contiguous() && targets.layout() == at::kStrided &&
                     !targets.is_neg() && !targets.is_conj() && !targets._is_zerotensor() &&
                     (has_classes() ? targets.dim() == 1 && (targets.scalar_type() == at::kLong ||
                                                             targets.scalar_type() == at::kByte)
                                    : targets.dim() == 2 && targets.size(1) == features_ &&
                                          targets.scalar_type() == dtype_);
    if (copies_target_ && !has_classes())
      operands_.target = training.backend().allocate({batches.size, features_}, dtype_);
  }

  bool has_classes() const { return losses()[loss_.kind].target == Target::classes; }

  // The batch that begins at a place of the order.
  void fill(int64_t begin, StepBatch& batch) {
    batch.rows = std::min(batches_.size, batches_.order.numel() - begin);
    const int64_t* const rows = order_ + begin;
    fill_input(rows, batch);
    const auto taken_of = [&](const at::Tensor& all) {
      return all.index_select(0, batches_.order.narrow(0, begin, batch.rows));
    };
    if (variance_ >= 0) arguments_.operands[variance_] = taken_of(variances_);
    if (batch.rows != operand_rows_ || variance_ >= 0) {
      const int64_t sizes[] = {batch.rows, features_};
      take_output(sizes, loss_);
      take_operands(arguments_, sizes, dtype_, loss_, operands_);
      operand_rows_ = batch.rows;
    }
    batch.loss = loss_;
    if (copies_target_) {
      copy_target(rows, batch);
    } else {
      const int64_t sizes[] = {batch.rows, features_};
      take_target(taken_of(batches_.targets), sizes, dtype_, batch.loss, operands_);
    }
  }

 private:
  void fill_input(const int64_t* rows, StepBatch& batch) {
    const at::Tensor& inputs = batches_.inputs;
    const bool bytes = inputs.scalar_type() == at::kByte;
    const int64_t stride = inputs.stride(0);
    if (!bytes && apart_ && are_neighbours(rows, batch.rows)) {
      batch.input = static_cast<const char*>(inputs.const_data_ptr()) +
                    rows[0] * stride * inputs.element_size();
      batch.input_stride = stride;
      return;
    }
    void* const to = batches_.buffer.mutable_data_ptr();
    const Dtype dtype = training_.lowered().spec.head.dtype;
    if (bytes) {
      training_.backend().gather_bytes(dtype, inputs.const_data_ptr<uint8_t>(), stride, rows,
                                       batch.rows, inputs.size(1), batches_.scale, batches_.shift,
                                       to);
    } else {
      training_.backend().gather(dtype, inputs.const_data_ptr(), stride, rows, batch.rows,
                                 inputs.size(1), to);
    }
    batch.input = to;
    batch.input_stride = inputs.size(1);
  }

  static bool are_neighbours(const int64_t* rows, int64_t count) {
    for (int64_t i = 1; i < count; ++i) {
      if (rows[i] != rows[i - 1] + 1) return false;
    }
    return count > 0;
  }

  void copy_target(const int64_t* rows, StepBatch& batch) {
    const at::Tensor& targets = batches_.targets;
    if (has_classes()) {
      operands_.classes.resize(batch.rows);
      const bool bytes = targets.scalar_type() == at::kByte;
      const void* const from = targets.const_data_ptr();
      for (int64_t i = 0; i < batch.rows; ++i) {
        operands_.classes[i] = bytes ? static_cast<const uint8_t*>(from)[rows[i]]
                                     : static_cast<const int64_t*>(from)[rows[i]];
      }
      check_classes(operands_.classes.data(), batch.rows, loss_.ignore_index, features_);
      batch.loss.classes = operands_.classes.data();
      return;
    }
    training_.backend().gather(training_.lowered().spec.head.dtype, targets.const_data_ptr(),
                               features_, rows, batch.rows, features_,
                               operands_.target.mutable_data_ptr());
    batch.loss.target = operands_.target.const_data_ptr();
  }

  const Batches& batches_;
  LossArguments arguments_;  // the variances: of one batch
  const Training& training_;
  const at::ScalarType dtype_;
  const bool apart_;
  const int64_t* const order_;
  const int64_t features_;
  Loss loss_;
  const int variance_;  // its place among the operands; -1: none
  at::Tensor variances_;
  LossOperands operands_;
  int64_t operand_rows_ = -1;  // of the batches that the operands are expanded for
  bool copies_target_ = false;
};

}  // namespace

void check_loss(const LossArguments& loss) { begin_loss(loss, loss.kind); }

void check_parameters(at::TensorList operands, const ParameterUpdates& updates,
                      const Averages& averages) {
  parameter_memory(operands, updates, averages);
}

StepResult train_step(const Arguments& arguments, const at::Tensor& target,
                      const LossArguments& loss_arguments, ParameterUpdates& updates,
                      const Averages& averages, double max_grad_norm) {
  check_undrawn(arguments);
  const Spans memory = parameter_memory(arguments.operands, updates, averages);
  // The loss's operands have been read when the first parameter is written; the input is read till
  // the last.
  const at::Tensor input =
      memory.writes(arguments.input) ? arguments.input.clone() : arguments.input;
  const Arguments apart{input, arguments.operands, arguments.program};
  const at::DimVector sizes = output_sizes(apart);
  const at::ScalarType dtype = input.scalar_type();
  Loss loss = begin_loss(loss_arguments, target);
  LossOperands operands;
  take_output(sizes, loss);
  take_target(target, sizes, dtype, loss, operands);
  take_operands(loss_arguments, sizes, dtype, loss, operands);
  StepResult result;
  result.loss = at::empty({}, input.options());  // before anything is modified
  Training training(apart, updates, averages, max_grad_norm, false);
  bool is_first = true;
  training.run(
      [&](StepBatch& batch) {
        if (!std::exchange(is_first, false)) return false;
        batch.rows = training.lowered().spec.head.batch;
        batch.input = training.lowered().memory.input;
        batch.input_stride = training.lowered().spec.head.input_stride;
        batch.loss = loss;
        return true;
      },
      [&](const LossResult& step) {
        if (losses()[loss.kind].target == Target::classes) result.correct = step.correct;
        if (dtype == at::kFloat) {
          *result.loss.mutable_data_ptr<float>() = static_cast<float>(step.loss);
        } else {
          *result.loss.mutable_data_ptr<double>() = step.loss;
        }
      });
  return result;
}

int64_t Batches::count() const { return (order.numel() + size - 1) / size; }

void train_steps(const Arguments& arguments, const Batches& given, const LossArguments& loss,
                 ParameterUpdates& updates, const Averages& averages, double max_grad_norm,
                 double* losses_out, int64_t* correct, int64_t& done) {
  Batches batches = given;
  batches.inputs = materialized("inputs", given.inputs);
  TORCH_CHECK(batches.inputs.dim() == 2 &&
                  (batches.inputs.size(1) <= 1 || batches.inputs.stride(1) == 1) &&
                  batches.inputs.device().is_cpu() && batches.targets.device().is_cpu() &&
                  batches.targets.dim() > 0 && batches.targets.size(0) == batches.inputs.size(0) &&
                  batches.order.scalar_type() == at::kLong && batches.order.dim() == 1 &&
                  batches.order.is_contiguous() && batches.size > 0 &&
                  batches.buffer.is_contiguous() && batches.buffer.size(0) >= batches.size &&
                  batches.buffer.size(1) == batches.inputs.size(1) &&
                  (batches.inputs.scalar_type() == at::kByte ||
                   batches.inputs.scalar_type() == batches.buffer.scalar_type()),
              "fastmlp.TrainStep.fit: expected inputs [rows, features] and as many targets on the "
              "CPU, got ",
              batches.inputs.sizes(), " and ", batches.targets.sizes());
  const at::NoGradGuard no_gradients;
  const int64_t rows = batches.inputs.size(0);
  const int64_t* order = batches.order.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < batches.order.numel(); ++i)
    TORCH_CHECK_INDEX(order[i] >= 0 && order[i] < rows, "row ", order[i], " is out of bounds");
  check_undrawn(arguments);
  const Spans memory = parameter_memory(arguments.operands, updates, averages);
  const auto is_apart = [&](const std::optional<at::Tensor>& tensor) {
    return !tensor || !memory.meets(*tensor);
  };
  // Nothing else may read the parameters while the steps run, unless a batch is made of them.
  const bool is_alone = is_apart(batches.inputs) && is_apart(batches.targets) &&
                        std::all_of(std::begin(loss.operands), std::end(loss.operands), is_apart);
  const at::ScalarType dtype = batches.buffer.scalar_type();
  Training training(arguments, updates, averages, max_grad_norm, is_alone);
  Feed feed(batches, loss, training, is_alone);
  done = 0;
  training.run(
      [&](StepBatch& batch) {
        if (done == batches.count()) return false;
        feed.fill(done * batches.size, batch);
        return true;
      },
      [&](const LossResult& result) {
        losses_out[done] = rounded(result.loss, dtype);
        correct[done] = feed.has_classes() ? result.correct : -1;
        ++done;
      });
}

}  // namespace fastmlp
