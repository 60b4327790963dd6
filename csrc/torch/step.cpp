#include "torch/step.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "cpu/product/matrix.h"
#include "cpu/pass/loss.h"
#include "torch/dropout.h"
#include "torch/overlap.h"
#include "torch/passes.h"

namespace fastmlp {
namespace {

// The loss's operands as the kernels read them, and what keeps their memory.
struct LossOperands {
  c10::SmallVector<int64_t, 64> classes;
  at::Tensor target, weight, positive_weight;
};

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

// Contiguous, of the prediction's dtype and the sizes that the kernels read.
at::Tensor expanded(const char* name, const std::optional<at::Tensor>& tensor,
                    at::IntArrayRef sizes, at::ScalarType dtype) {
  if (!tensor) return {};
  return materialized(name, *tensor).to(dtype).expand(sizes).contiguous();
}

LossOperands loss_operands(const LossOptions& options, const at::Tensor& given,
                           at::IntArrayRef sizes, at::ScalarType dtype) {
  LossOperands operands;
  const at::Tensor target = materialized("target", given);
  const int64_t batch = c10::multiply_integers(sizes.slice(0, sizes.size() - 1));
  const int64_t features = sizes.back();
  const bool crosses = options.kind == LossKind::cross_entropy ||
                       options.kind == LossKind::cross_entropy_probabilities;
  // torch takes dimension 1 for the classes, a layer's outputs are the last.
  TORCH_CHECK_VALUE(!crosses || sizes.size() <= 2,
                    "fastmlp.TrainStep: CrossEntropyLoss takes a model output of one or two "
                    "dimensions here, got shape ",
                    sizes);
  TORCH_CHECK(options.label_smoothing >= 0 && options.label_smoothing <= 1,
              "label_smoothing must be between 0.0 and 1.0. Got: ", options.label_smoothing);
  TORCH_CHECK(options.kind != LossKind::cross_entropy_probabilities || options.ignore_index < 0,
              "ignore_index is not supported for floating point target");
  if (options.kind == LossKind::cross_entropy) {
    check_shape("class targets", target, sizes.slice(0, sizes.size() - 1));
    TORCH_CHECK(target.scalar_type() == at::kLong || target.scalar_type() == at::kByte,
                "expected scalar type Long or Byte for class targets, got ", target.scalar_type());
    // A copy, and the copy is checked: another thread may write to the caller's while no lock is
    // held, and classes are places in memory.
    const at::Tensor classes = target.to(at::kLong).contiguous();
    const int64_t* const from = classes.const_data_ptr<int64_t>();
    operands.classes.assign(from, from + batch);
    for (const int64_t label : operands.classes) {
      TORCH_CHECK_INDEX(label == options.ignore_index || (label >= 0 && label < features),
                        "Target ", label, " is out of bounds.");
    }
  } else {
    check_shape("targets", target, sizes);
    TORCH_CHECK(at::isFloatingType(target.scalar_type()),
                "fastmlp.TrainStep: expected floating point targets, got ", target.scalar_type());
    operands.target = target.to(dtype).contiguous();
  }
  if (options.weight) {
    TORCH_CHECK(!crosses || (options.weight->dim() == 1 && options.weight->numel() == features),
                "weight tensor should be defined either for all ", features,
                " classes or no classes but got weight tensor of shape: ", options.weight->sizes());
    operands.weight = expanded("loss's weight", options.weight,
                               crosses ? at::IntArrayRef(features) : sizes, dtype);
  }
  operands.positive_weight = expanded("loss's pos_weight", options.positive_weight, sizes, dtype);
  return operands;
}

template <typename T>
Update<T> converted(const Update<double>& o) {
  Update<T> u;
  u.kind = o.kind;
  u.first = o.first, u.nesterov = o.nesterov, u.maximize = o.maximize, u.decoupled = o.decoupled;
  u.lr = o.lr, u.momentum_factor = o.momentum_factor, u.dampening = o.dampening;
  u.weight_decay = o.weight_decay;
  u.beta1 = o.beta1, u.beta2 = o.beta2, u.eps = o.eps, u.step = o.step;
  if (u.kind == OptimizerKind::adam) {
    u.correction1 = 1 - std::pow(u.beta1, u.step);
    u.correction2 = std::sqrt(1 - std::pow(u.beta2, u.step));
  }
  return u;
}

const at::Tensor& operand(const Arguments& arguments, size_t index) {
  const size_t layers = arguments.weights.size();
  return index < layers ? arguments.weights[index] : *arguments.biases[index - layers];
}

template <typename T>
T* state_of(const at::Tensor& state, const at::Tensor& parameter) {
  if (!state.defined()) return nullptr;
  TORCH_CHECK(state.sizes() == parameter.sizes() && state.layout() == at::kStrided &&
                  state.is_contiguous() && !state.is_neg() && !state._is_zerotensor() &&
                  state.scalar_type() == parameter.scalar_type() && state.device().is_cpu(),
              "fastmlp.TrainStep: expected the optimizer's state contiguous, of shape ",
              parameter.sizes(), " and dtype ", parameter.scalar_type(),
              " on the CPU, no lazy view, got shape ", state.sizes(), " and dtype ",
              state.scalar_type(), " on ", state.device());
  return state.mutable_data_ptr<T>();
}

// All the memory that a step writes or keeps between its writes. The passes write a parameter while
// others still read theirs.
Spans parameter_memory(const Arguments& arguments, const std::vector<ParameterUpdate>& updates) {
  Spans spans;
  const size_t layers = arguments.weights.size();
  c10::SmallVector<bool, 32> trained(2 * layers, false);
  for (const ParameterUpdate& one : updates) {
    trained[one.operand] = true;
    for (const at::Tensor* tensor :
         {&operand(arguments, one.operand), &one.momentum, &one.square, &one.square_max, &one.step})
      spans.add(*tensor, true);
  }
  for (size_t i = 0; i < 2 * layers; ++i) {
    if (!trained[i] && (i < layers || arguments.biases[i - layers]))
      spans.add(operand(arguments, i), false);
  }
  TORCH_CHECK(spans.are_apart(),
              "fastmlp.TrainStep: layers share a parameter, or two of the parameters and of the "
              "optimizer's tensors lie in the same memory. Use the model's own forward and "
              "backward instead");
  return spans;
}

// The first layer's weight in the layout for inputs that are mostly one value, from step to step.
template <typename T>
struct Keep {
  KeptWeight<T> weight;
  at::Tensor memory;
};

template <typename T>
StepResult run(const Arguments& arguments, const at::Tensor& target, const LossOptions& options,
               const std::vector<ParameterUpdate>& requested, double max_grad_norm, int threads,
               Keep<T>& keep) {
  const size_t layers = arguments.weights.size();
  const at::ScalarType dtype = arguments.input.scalar_type();
  at::DimVector sizes(arguments.input.sizes());
  sizes.back() = arguments.weights.back().size(0);
  const int64_t batch = c10::multiply_integers(at::IntArrayRef(sizes).slice(0, sizes.size() - 1));
  const int64_t features = sizes.back();
  const LossOperands operands = loss_operands(options, target, sizes, dtype);

  Needs needs(1 + 2 * layers);
  std::vector<Update<T>> updates;
  updates.reserve(requested.size());
  std::vector<int64_t> offsets;  // of the gradients; -1: not written
  offsets.reserve(requested.size());
  int64_t gradient_elements = 0;
  bool adds_to_weight = false;  // of the first layer
  for (const ParameterUpdate& one : requested) {
    const at::Tensor& parameter = operand(arguments, one.operand);
    TORCH_CHECK(parameter.is_contiguous(),
                "fastmlp.TrainStep: expected contiguous parameters, got one of shape ",
                parameter.sizes(), " and strides ", parameter.strides());
    needs[1 + one.operand] = true;
    Update<T> update = converted<T>(one.options);
    update.elements = parameter.numel();
    update.parameter = parameter.mutable_data_ptr<T>();
    update.momentum = state_of<T>(one.momentum, parameter);
    update.square = state_of<T>(one.square, parameter);
    update.square_max = state_of<T>(one.square_max, parameter);
    // Without clipping each gradient is used up as soon as it is there, and that of a weight whose
    // update is plain is never written, unless it is a sum of several parts: each of them would
    // round the weight anew.
    const bool written =
        max_grad_norm > 0 || one.operand >= layers || !update.plain() || batch > cpu::kTileDepth;
    offsets.push_back(written ? gradient_elements : -1);
    updates.push_back(update);
    if (written) gradient_elements += cpu::aligned<T>(parameter.numel());
    if (!written && one.operand == 0) adds_to_weight = true;
  }

  const SavedLayout layout = saved_layout(arguments, needs);
  // Prediction and its gradient, saved activations, gradients: one block.
  const int64_t outputs = cpu::aligned<T>(batch * features);
  const int64_t saved = cpu::aligned<T>(layout.elements);
  const at::Tensor block = uninitialized({2 * outputs + saved + gradient_elements}, dtype);
  T* const prediction = block.mutable_data_ptr<T>();
  T* const grad_output = prediction + outputs;
  T* const gradients = grad_output + outputs + saved;

  Operands forward_operands;
  Forward<T> forward = make_forward<T>(arguments, forward_operands);
  place_saved<T>(forward, layout, grad_output + outputs, prediction);
  if (adds_to_weight) forward.kept = &keep.weight;
  cpu::ForwardPass<T> forward_pass(forward, threads);
  if (forward_pass.kept_elements() > 0 && !keep.memory.defined()) {
    keep.memory = uninitialized({forward_pass.kept_elements()}, dtype);
    keep.weight.panels = keep.memory.template mutable_data_ptr<T>();
  }
  const at::Tensor forward_workspace = run_pass(forward_pass, dtype);

  Loss<T> loss;
  const auto pointer = [](const at::Tensor& tensor) {
    return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
  };
  loss.kind = options.kind, loss.mean = options.mean;
  loss.batch = batch, loss.features = features;
  loss.prediction = prediction, loss.gradient = grad_output;
  loss.target = pointer(operands.target), loss.weight = pointer(operands.weight);
  loss.positive_weight = pointer(operands.positive_weight);
  loss.classes = operands.classes.data();
  loss.ignore_index = options.ignore_index, loss.label_smoothing = options.label_smoothing;
  const LossResult result = cpu::compute_loss(loss, threads);

  const at::Tensor value = at::empty({}, arguments.input.options());  // before anything is modified
  if (!updates.empty()) {
    Backward<T> backward;
    backward.forward = forward;
    backward.grad_output = grad_output;
    backward.grad_output_stride = features;
    backward.gradients.resize(layers);
    for (size_t i = 0; i < updates.size(); ++i) {
      T* const to = offsets[i] < 0 ? nullptr : gradients + offsets[i];
      updates[i].gradient = to;
      const size_t operand = requested[i].operand;
      LayerGradient<T>& gradient = backward.gradients[operand % layers];
      (operand < layers ? gradient.weight : gradient.bias) = to;
      if (max_grad_norm > 0) continue;
      (operand < layers ? gradient.weight_update : gradient.bias_update) = &updates[i];
    }
    cpu::BackwardPass<T> backward_pass(backward, threads, &forward_pass);
    run_pass(backward_pass, dtype);
    if (max_grad_norm > 0) {
      const double scale = cpu::clipping_factor(updates, max_grad_norm, threads);
      cpu::apply(updates, scale, threads);
    }
    for (const ParameterUpdate& one : requested) {
      const at::Tensor& parameter = operand(arguments, one.operand);
      if (!parameter.is_inference()) parameter.unsafeGetTensorImpl()->bump_version();
    }
  }
  *value.mutable_data_ptr<T>() = static_cast<T>(result.loss);
  return {value, options.kind == LossKind::cross_entropy ? result.correct : -1};
}

// Rows of uint8 as scale·x + shift.
template <typename T>
void convert_rows(const Batches& batches, const int64_t* rows, int64_t count, int threads) {
  cpu::gather<T>(batches.inputs.const_data_ptr<uint8_t>(), batches.inputs.stride(0), rows, count,
                 batches.inputs.size(1), static_cast<T>(batches.scale),
                 static_cast<T>(batches.shift), batches.buffer.mutable_data_ptr<T>(), threads);
}

LossOptions for_target(const LossOptions& loss, const at::Tensor& target) {
  LossOptions options = loss;
  if (options.kind == LossKind::cross_entropy && at::isFloatingType(target.scalar_type()))
    options.kind = LossKind::cross_entropy_probabilities;
  return options;
}

template <typename T>
void run_all(const Arguments& arguments, at::ArrayRef<double> dropouts, const Batches& batches,
             const LossOptions& loss, std::vector<ParameterUpdate>& updates, double max_grad_norm,
             double* losses, int64_t* correct, int64_t& done) {
  const bool bytes = batches.inputs.scalar_type() == at::kByte;
  const int64_t* order = batches.order.const_data_ptr<int64_t>();
  const LossOptions options = for_target(loss, batches.targets);
  const int threads = max_threads();  // one number, on which the layout of what is kept depends
  Keep<T> keep;
  // Unless a batch is made of the weight itself.
  const Span weight = span(arguments.weights[0]);
  const auto meets_weight = [&](const std::optional<at::Tensor>& tensor) {
    return tensor && span(*tensor).meets(weight);
  };
  keep.weight.may_wait = !meets_weight(batches.inputs) && !meets_weight(batches.targets) &&
                         !meets_weight(loss.weight) && !meets_weight(loss.positive_weight);
  // Nothing else may read the weight while the steps run; in the end it has to be up to date.
  struct Flush {
    Keep<T>& keep;
    const at::Tensor& weight;
    int threads;
    ~Flush() {
      Layer<T> layer;
      layer.out_features = weight.size(0), layer.in_features = weight.size(1);
      cpu::flush(keep.weight, layer, static_cast<T*>(weight.data_ptr()), threads);
    }
  } flush{keep, arguments.weights[0], threads};
  for (done = 0; done < batches.count();) {
    const int64_t begin = done * batches.size;
    const int64_t count = std::min(batches.size, batches.order.numel() - begin);
    const at::Tensor index = batches.order.narrow(0, begin, count);
    at::Tensor input = batches.buffer.narrow(0, 0, count);
    if (bytes) {
      convert_rows<T>(batches, order + begin, count, threads);
    } else {
      at::index_select_out(input, batches.inputs, 0, index);
    }
    Arguments batch = arguments.with(input);
    draw_noise(batch, dropouts);
    check(batch);
    const StepResult result = run<T>(batch, batches.targets.index_select(0, index), options,
                                     updates, max_grad_norm, threads, keep);
    losses[done] = result.loss.template item<double>();
    correct[done] = result.correct;
    ++done;
    for (ParameterUpdate& update : updates) {
      update.options.first = false;
      update.options.step += 1;
    }
  }
}

}  // namespace

StepResult train_step(const Arguments& arguments, const at::Tensor& target, const LossOptions& loss,
                      const std::vector<ParameterUpdate>& updates, double max_grad_norm) {
  check(arguments);
  const Spans memory = parameter_memory(arguments, updates);
  // The loss's operands have been read when the first parameter is written; the input is read till
  // the last.
  const at::Tensor input =
      memory.writes(arguments.input) ? arguments.input.clone() : arguments.input;
  Arguments apart = arguments.with(input);
  apart.noise = arguments.noise;
  const LossOptions options = for_target(loss, target);
  const auto step = [&](auto keep) {
    return run(apart, target, options, updates, max_grad_norm, max_threads(), keep);
  };
  return arguments.input.scalar_type() == at::kFloat ? step(Keep<float>()) : step(Keep<double>());
}

int64_t Batches::count() const { return cpu::divide_up(order.numel(), size); }

void train_steps(const Arguments& arguments, at::ArrayRef<double> dropouts, const Batches& given,
                 const LossOptions& loss, std::vector<ParameterUpdate>& updates,
                 double max_grad_norm, double* losses, int64_t* correct, int64_t& done) {
  Batches batches = given;
  batches.inputs = materialized("inputs", given.inputs);
  TORCH_CHECK(batches.inputs.dim() == 2 &&
                  (batches.inputs.size(1) <= 1 || batches.inputs.stride(1) == 1) &&
                  batches.inputs.device().is_cpu() && batches.targets.device().is_cpu() &&
                  batches.targets.dim() > 0 && batches.targets.size(0) == batches.inputs.size(0) &&
                  batches.order.scalar_type() == at::kLong && batches.order.dim() == 1 &&
                  batches.order.is_contiguous() && batches.size > 0 &&
                  batches.buffer.is_contiguous() && batches.buffer.size(0) >= batches.size &&
                  batches.buffer.size(1) == batches.inputs.size(1),
              "fastmlp.TrainStep.fit: expected inputs [rows, features] and as many targets on the "
              "CPU, got ",
              batches.inputs.sizes(), " and ", batches.targets.sizes());
  const at::NoGradGuard no_gradients;
  const int64_t rows = batches.inputs.size(0);
  const int64_t* order = batches.order.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < batches.order.numel(); ++i)
    TORCH_CHECK_INDEX(order[i] >= 0 && order[i] < rows, "row ", order[i], " is out of bounds");
  parameter_memory(arguments, updates);
  const auto run_steps =
      batches.buffer.scalar_type() == at::kFloat ? run_all<float> : run_all<double>;
  run_steps(arguments, dropouts, batches, loss, updates, max_grad_norm, losses, correct, done);
}

}  // namespace fastmlp
