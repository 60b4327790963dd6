// The one autograd node of a network.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "torch/ops.h"
#include "torch/plain.h"

namespace fastmlp {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// What backward needs to know of a forward. Tensors that eager would save, too, go through
// save_for_backward, which checks at backward that nobody modified them; the rest (a weight whose
// input needs no gradient, the biases) is needed for shapes and for second derivatives alone, and
// may be modified in between as in eager.
struct Call : torch::CustomClassHolder {
  std::vector<int64_t> numbers;
  std::vector<double> constants;
  Program program;
  Needs needs;                        // of input, operands…
  Needs checked;                      // likewise: which ones went through save_for_backward
  std::vector<at::Tensor> unchecked;  // input, operands…; undefined where checked
  std::vector<int64_t> versions;      // of the unchecked ones
  at::Tensor saved;                   // by forward, till its caller takes it

  bool reads_output() const {
    const LayerOps& last = program.layers.back();
    return saves_output(last.activation) && last.is_output_activated();
  }
};

class MLPFunction : public torch::autograd::Function<MLPFunction> {
 public:
  // tensors: input, operands…
  static at::Tensor forward(AutogradContext* ctx, at::TensorList tensors,
                            const c10::intrusive_ptr<Call>& call) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, saved] =
        mlp_forward(tensors[0], tensors.slice(1), call->numbers, call->constants, call->needs);
    call->saved = saved;
    variable_list kept{saved};
    if (call->reads_output()) kept.push_back(output);
    call->unchecked.resize(tensors.size());
    call->versions.resize(tensors.size());
    for (size_t i = 0; i < tensors.size(); ++i) {
      if (call->checked[i]) {
        kept.push_back(tensors[i]);
      } else {
        call->unchecked[i] = tensors[i];
        call->versions[i] = version(tensors[i]);
      }
    }
    ctx->save_for_backward(std::move(kept));
    ctx->saved_data["call"] = at::IValue::make_capsule(call);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto holder = ctx->saved_data["call"].toCapsule();
    const Call& call = static_cast<const Call&>(*holder);
    const size_t count = call.needs.size();
    variable_list result(count + 1);  // and one more argument of forward that is no tensor
    if (!grads[0].defined()) return result;
    Needs needs(count);  // which are wanted now: of those that forward foresaw
    for (size_t i = 0; i < count; ++i) needs[i] = call.needs[i] && ctx->needs_input_grad(i);

    const variable_list kept = ctx->get_saved_variables();
    size_t next = 0;
    const at::Tensor saved = kept[next++];
    const at::Tensor output =
        call.reads_output() ? kept[next++] : grads[0];  // of its shape, and not read
    variable_list tensors = call.unchecked;
    for (size_t i = 0; i < count; ++i) {
      if (call.checked[i]) tensors[i] = kept[next++];
    }
    variable_list gradients;
    if (at::GradMode::is_enabled()) {
      check_versions(call);
      gradients = differentiable(call.program, grads[0], tensors, needs);
    } else {
      const at::AutoDispatchBelowADInplaceOrView guard;
      gradients = mlp_backward(grads[0], tensors[0], at::TensorList(tensors).slice(1), output,
                               saved, call.numbers, call.constants, call.needs, needs);
    }
    next = 0;
    for (size_t i = 0; i < count; ++i) {
      if (needs[i]) result[i] = gradients[next++];
    }
    return result;
  }

 private:
  static int64_t version(const at::Tensor& tensor) {
    return tensor.is_inference() ? 0 : static_cast<int64_t>(tensor._version());
  }

  static void check_versions(const Call& call) {
    for (size_t i = 0; i < call.unchecked.size(); ++i) {
      const at::Tensor& tensor = call.unchecked[i];
      TORCH_CHECK(!tensor.defined() || version(tensor) == call.versions[i],
                  "one of the variables needed for gradient computation has been modified by an "
                  "inplace operation: [",
                  tensor.toString(), " ", tensor.sizes(), "] is at version ", version(tensor),
                  "; expected version ", call.versions[i],
                  " instead, for the second derivative of FusedMLP");
    }
  }

  // The gradients as torch operations that can be differentiated again (create_graph=True): torch's
  // own of the plain network, which is computed anew. Of aliases, so that the way from one operand
  // to another, which the graph behind them may have, is not gone here.
  static variable_list differentiable(const Program& program, const at::Tensor& grad_output,
                                      const variable_list& tensors, const Needs& needs) {
    variable_list aliases, wanted;
    for (size_t i = 0; i < tensors.size(); ++i) {
      aliases.push_back(needs[i] ? at::alias(tensors[i]) : tensors[i]);
      if (needs[i]) wanted.push_back(aliases.back());
    }
    const Arguments arguments{aliases[0], at::TensorList(aliases).slice(1), program};
    return torch::autograd::grad({plain(arguments)}, wanted, {grad_output}, std::nullopt, true);
  }
};

// The output, and what forward has saved.
std::tuple<at::Tensor, at::Tensor> run(const at::Tensor& input, at::TensorList operands,
                                       at::IntArrayRef numbers, at::ArrayRef<double> constants) {
  Needs needs;
  if (at::GradMode::is_enabled()) {
    needs.push_back(input.requires_grad());
    for (const at::Tensor& operand : operands) needs.push_back(operand.requires_grad());
  }
  if (std::find(needs.begin(), needs.end(), true) == needs.end()) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return mlp_forward(input, operands, numbers, constants, {});
  }
  auto call = c10::make_intrusive<Call>();
  call->numbers = numbers.vec();
  call->constants = constants.vec();
  call->program = decode(numbers, constants);
  call->needs = needs;
  // Malformed arguments have no layers to tell apart; the check of mlp_forward speaks of them.
  call->checked = Needs(needs.size(), false);
  if (call->program.operands == static_cast<int>(operands.size())) {
    // As eager: the input for its weight's gradient, a weight for its input's gradient. below:
    // whether a gradient goes through what a layer is given; before: likewise the layer before it.
    bool below = needs[0], before = below;
    for (int64_t l = 0; l < call->program.layers.size(); ++l) {
      const LayerOps& layer = call->program.layers[l];
      const auto needed = [&](int operand) { return operand >= 0 && needs[1 + operand]; };
      const auto check = [&](int operand, bool is_read) {
        if (operand >= 0) call->checked[1 + operand] = is_read;
      };
      const bool trains = needed(layer.weight), passes = layer.gates ? before : below;
      if (l == 0 || (l == 1 && layer.gates))
        call->checked[0] = call->checked[0] || trains || (reads_input(layer.norm) && needs[0]);
      check(layer.weight, passes);
      for (const int operand : {layer.noise, layer.mean, layer.variance}) {
        TORCH_CHECK(!needed(operand), "fastmlp: expected ",
                    operand == layer.noise ? "noise that requires"
                                           : "a norm's mean and variance that require",
                    " no gradient");
        check(operand, operand == layer.noise || below || trains);
      }
      before = passes;
      below = below || trains || needed(layer.bias);
    }
  }
  variable_list tensors{input};
  tensors.insert(tensors.end(), operands.begin(), operands.end());
  const at::Tensor output = MLPFunction::apply(at::TensorList(tensors), call);
  return {output, std::move(call->saved)};
}

at::Tensor mlp_autograd(const at::Tensor& input, at::TensorList operands, at::IntArrayRef numbers,
                        at::ArrayRef<double> constants) {
  return std::get<0>(run(input, operands, numbers, constants));
}

std::tuple<at::Tensor, at::Tensor> mlp_train_autograd(const at::Tensor& input,
                                                      at::TensorList operands,
                                                      at::IntArrayRef numbers,
                                                      at::ArrayRef<double> constants) {
  auto [output, saved] = run(input, operands, numbers, constants);
  const at::AutoDispatchBelowADInplaceOrView guard;
  return {output, statistics({input, operands, decode(numbers, constants)}, saved)};
}

}  // namespace
}  // namespace fastmlp

TORCH_LIBRARY_IMPL(fastmlp, Autograd, m) {
  m.impl("mlp", fastmlp::mlp_autograd);
  m.impl("mlp_train", fastmlp::mlp_train_autograd);
}
