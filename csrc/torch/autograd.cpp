// The one autograd node of a network.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "network/network.h"
#include "torch/ops.h"

namespace fastmlp {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor activate(Activation activation, const at::Tensor& z, double slope) {
  switch (activation) {
    case Activation::identity:
      return z;
    case Activation::relu:
      return at::relu(z);
    case Activation::leaky_relu:
      return at::leaky_relu(z, slope);
    case Activation::elu:
      return at::elu(z, slope);
    case Activation::sigmoid:
      return at::sigmoid(z);
    case Activation::tanh:
      return at::tanh(z);
    case Activation::gelu:
      return at::gelu(z);
    case Activation::gelu_tanh:
      return at::gelu(z, "tanh");
    case Activation::silu:
      return at::silu(z);
  }
  TORCH_CHECK(false, "fastmlp: unknown activation");
}

// torch has no derivative of its own silu_backward.
at::Tensor silu_derivative(const at::Tensor& grad, const at::Tensor& z) {
  const at::Tensor p = at::sigmoid(z);
  return grad * p * (z * (1 - p) + 1);
}

at::Tensor derive(Activation activation, const at::Tensor& grad, const at::Tensor& z,
                  const at::Tensor& y, double slope) {
  switch (activation) {
    case Activation::identity:
      return grad;
    case Activation::relu:
      return at::threshold_backward(grad, y, 0);
    case Activation::leaky_relu:
      return at::leaky_relu_backward(grad, z, slope, false);
    case Activation::elu:
      return at::elu_backward(grad, slope, 1, 1, false, z);
    case Activation::sigmoid:
      return at::sigmoid_backward(grad, y);
    case Activation::tanh:
      return at::tanh_backward(grad, y);
    case Activation::gelu:
      return at::gelu_backward(grad, z);
    case Activation::gelu_tanh:
      return at::gelu_backward(grad, z, "tanh");
    case Activation::silu:
      return silu_derivative(grad, z);
  }
  TORCH_CHECK(false, "fastmlp: unknown activation");
}

// What backward needs to know of a forward. Tensors that eager would save, too, go through
// save_for_backward, which checks at backward that nobody modified them; the rest (a weight whose
// input needs no gradient, the biases) is needed for shapes and for second derivatives alone, and
// may be modified in between as in eager.
struct Call : torch::CustomClassHolder {
  std::vector<int64_t> activations;
  std::vector<double> slopes;
  std::vector<int64_t> tails;
  at::Tensor noise;           // on its way to what is saved
  std::vector<bool> needs;    // of input, weights…, biases…
  std::vector<bool> checked;  // of input, weights…: which ones went through save_for_backward
  std::vector<at::Tensor>
      unchecked;  // input, weights…, biases…; undefined where checked, or where there is no bias
  std::vector<int64_t> versions;  // of the unchecked ones

  size_t layers() const { return activations.size(); }
  int64_t tail(size_t l) const { return tails.empty() ? 0 : tails[l]; }
  bool reads_output() const {
    return saves_output(static_cast<Activation>(activations.back())) && tail(layers() - 1) == 0;
  }
};

class MLPFunction : public torch::autograd::Function<MLPFunction> {
 public:
  // tensors: input, weights…, and of the biases those that there are.
  static at::Tensor forward(AutogradContext* ctx, at::TensorList tensors,
                            const OptionalTensors& biases, const c10::intrusive_ptr<Call>& call) {
    const size_t layers = call->layers();
    const at::AutoDispatchBelowADInplaceOrView guard;
    auto [output, saved] =
        mlp_forward(tensors[0], tensors.slice(1, layers), biases, call->activations, call->slopes,
                    call->needs, call->noise, call->tails);

    variable_list kept{saved, std::move(call->noise)};
    if (call->reads_output()) kept.push_back(output);
    const auto keep = [&](size_t i, const at::Tensor& tensor) {
      if (i <= layers && call->checked[i]) {
        kept.push_back(tensor);
      } else {
        call->unchecked[i] = tensor;
        call->versions[i] = version(tensor);
      }
    };
    call->unchecked.resize(1 + 2 * layers);
    call->versions.resize(1 + 2 * layers);
    for (size_t i = 0; i <= layers; ++i) keep(i, tensors[i]);
    for (size_t l = 0; l < layers; ++l) {
      const std::optional<at::Tensor> bias = biases.get(l);
      if (bias) keep(1 + layers + l, *bias);
    }
    ctx->save_for_backward(std::move(kept));
    ctx->saved_data["call"] = at::IValue::make_capsule(call);
    return output;
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const auto holder = ctx->saved_data["call"].toCapsule();
    const Call& call = static_cast<const Call&>(*holder);
    const size_t layers = call.layers();
    variable_list tensors = call.unchecked, result;
    // Which gradients are wanted now: of those that forward foresaw. Their places among forward's
    // arguments leave no room for a bias that is not there.
    std::vector<bool> needs(call.needs.size());
    std::vector<size_t> place(call.needs.size());
    for (size_t i = 0; i < needs.size(); ++i) {
      place[i] = result.size();
      const bool present = i <= layers || tensors[i].defined();
      needs[i] = present && call.needs[i] && ctx->needs_input_grad(place[i]);
      if (present) result.emplace_back();
    }
    result.resize(result.size() + 2);  // two more arguments of forward that are no tensors
    if (!grads[0].defined()) return result;

    const variable_list kept = ctx->get_saved_variables();
    size_t next = 0;
    const at::Tensor saved = kept[next++];
    const at::Tensor noise = kept[next++];
    const at::Tensor output =
        call.reads_output() ? kept[next++] : grads[0];  // of its shape, and not read
    for (size_t i = 0; i <= layers; ++i) {
      if (call.checked[i]) tensors[i] = kept[next++];
    }
    variable_list gradients;
    if (at::GradMode::is_enabled()) {
      check_versions(call);
      gradients = differentiable(call, grads[0], tensors, noise, needs);
    } else {
      const at::AutoDispatchBelowADInplaceOrView guard;
      gradients =
          mlp_backward(grads[0], tensors[0], at::TensorList(tensors.data() + 1, layers), output,
                       saved, call.activations, call.slopes, call.needs, needs, noise, call.tails);
    }
    next = 0;
    for (size_t i = 0; i < needs.size(); ++i) {
      if (needs[i]) result[place[i]] = gradients[next++];
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

  // The gradients as torch operations that can be differentiated again (create_graph=True): the
  // activations are computed anew, since those that forward saved stand outside of the graph.
  static variable_list differentiable(const Call& call, const at::Tensor& grad_output,
                                      const variable_list& tensors, const at::Tensor& noise,
                                      const std::vector<bool>& needs) {
    const size_t layers = call.layers();
    const at::Tensor& input = tensors[0];
    const int64_t batch = c10::multiply_integers(input.sizes().slice(0, input.dim() - 1));
    // Sums, activations, what dropout multiplies them by, and each layer's input (x[l + 1] is the
    // output of layer l).
    variable_list z(layers), y(layers), factor(layers), x(layers + 1);
    x[0] = input.reshape({batch, input.size(-1)});
    int64_t begin = 0;
    for (size_t l = 0; l < layers; ++l) {
      const at::Tensor& bias = tensors[1 + layers + l];
      z[l] = at::linear(x[l], tensors[1 + l],
                        bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
      y[l] = activate(static_cast<Activation>(call.activations[l]), z[l], call.slopes[l]);
      x[l + 1] = y[l];
      if (call.tail(l) & kNoise) {
        factor[l] = noise.narrow(0, begin, y[l].numel()).view(y[l].sizes());
        begin += y[l].numel();
        x[l + 1] = x[l + 1] * factor[l];
      }
      if (call.tail(l) & kSkip) x[l + 1] = x[l + 1] + x[l];
    }
    variable_list weight_gradients, bias_gradients;
    at::Tensor grad = grad_output.reshape(x[layers].sizes());
    for (size_t l = layers; l-- > 0;) {
      const at::Tensor skipped = grad;
      if (factor[l].defined()) grad = grad * factor[l];
      grad = derive(static_cast<Activation>(call.activations[l]), grad, z[l], y[l], call.slopes[l]);
      if (needs[1 + l]) weight_gradients.push_back(grad.t().matmul(x[l]));
      if (needs[1 + layers + l]) bias_gradients.push_back(grad.sum(0));
      if (l == 0 && !needs[0]) break;
      grad = grad.matmul(tensors[1 + l]);
      if (call.tail(l) & kSkip) grad = grad + skipped;
    }
    variable_list gradients;
    if (needs[0]) gradients.push_back(grad.reshape(input.sizes()));
    gradients.insert(gradients.end(), weight_gradients.rbegin(), weight_gradients.rend());
    gradients.insert(gradients.end(), bias_gradients.rbegin(), bias_gradients.rend());
    return gradients;
  }
};

at::Tensor mlp_autograd(const at::Tensor& input, at::TensorList weights,
                        const OptionalTensors& biases, at::IntArrayRef activations,
                        at::ArrayRef<double> slopes, const std::optional<at::Tensor>& noise,
                        at::IntArrayRef tails) {
  const size_t layers = weights.size();
  TORCH_CHECK(!noise || !noise->requires_grad(),
              "fastmlp: expected noise that requires no gradient");
  std::vector<bool> needs;
  // Malformed arguments have no layers to tell apart; the check of mlp_forward speaks of them.
  if (at::GradMode::is_enabled() && layers > 0 && biases.size() == layers &&
      (tails.empty() || tails.size() == layers)) {
    needs.push_back(input.requires_grad());
    for (const at::Tensor& weight : weights) needs.push_back(weight.requires_grad());
    for (const std::optional<at::Tensor>& bias : biases)
      needs.push_back(bias && bias->requires_grad());
  }
  const auto first = std::find(needs.begin(), needs.end(), true);
  if (first == needs.end()) {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return std::get<0>(mlp_forward(input, weights, biases, activations, slopes, {},
                                   noise.value_or(at::Tensor()), tails));
  }
  variable_list tensors{input};
  tensors.insert(tensors.end(), weights.begin(), weights.end());
  for (const std::optional<at::Tensor>& bias : biases) {
    if (bias) tensors.push_back(*bias);
  }
  auto call = c10::make_intrusive<Call>();
  call->activations = activations.vec();
  call->slopes = slopes.vec();
  call->tails = tails.vec();
  call->noise = noise.value_or(at::Tensor());
  call->needs = needs;
  // As eager: the input for its weight's gradient, a weight for its input's gradient.
  call->checked.push_back(needs[1]);
  bool below = needs[0];
  for (size_t l = 0; l < layers; ++l) {
    call->checked.push_back(below);
    below = below || needs[1 + l] || needs[1 + layers + l];
  }
  return MLPFunction::apply(at::TensorList(tensors), biases, call);
}

}  // namespace
}  // namespace fastmlp

TORCH_LIBRARY_IMPL(fastmlp, Autograd, m) { m.impl("mlp", fastmlp::mlp_autograd); }
