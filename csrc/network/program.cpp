#include "network/program.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace fastmlp {
namespace {

[[noreturn]] void refuse(const std::string& what) {
  throw std::runtime_error("fastmlp: expected the program of a network, got one " + what);
}

// Of each norm, the op that begins a layer of it.
constexpr Op kBeginnings[kNorms] = {Op::linear,      Op::layer_norm, Op::rms_norm,
                                    Op::batch_norm,  Op::fixed_norm, Op::softmax,
                                    Op::log_softmax, Op::pass,       Op::prelu};

// What the number of a norm has where there is no weight.
constexpr int64_t kNoWeight = 2;

// Whether a number tells which parameters there are.
bool has_number(Norm norm) { return norm == Norm::none || has_eps(norm); }

// Reads numbers one after the other.
template <typename Number>
class Reader {
 public:
  Reader(const Number* begin, int64_t count) : next_(begin), end_(begin + count) {}
  bool at_end() const { return next_ == end_; }
  Number take(const char* what) {
    if (at_end()) refuse(std::string("that ends before ") + what);
    return *next_++;
  }

 private:
  const Number* next_;
  const Number* end_;
};

}  // namespace

LayerOps& Program::add(Norm norm, double eps, bool bias, bool weight) {
  LayerOps layer;
  layer.norm = norm;
  layer.eps = eps;
  if (weight && has_weight(norm)) layer.weight = operands++;
  if (bias) layer.bias = operands++;
  if (norm == Norm::fixed) {
    layer.mean = operands++;
    layer.variance = operands++;
  }
  layers.push_back(layer);
  return layers.back();
}

bool has_batch_norm(const Program& program) {
  return std::any_of(program.layers.begin(), program.layers.end(),
                     [](const LayerOps& one) { return one.norm == Norm::batch; });
}

void encode(const Program& program, Numbers& numbers, Constants& constants) {
  const auto add = [&](Op op) { numbers.push_back(static_cast<int64_t>(op)); };
  for (const LayerOps& layer : program.layers) {
    add(kBeginnings[static_cast<int>(layer.norm)]);
    if (has_number(layer.norm))
      numbers.push_back((layer.bias >= 0) + kNoWeight * (layer.weight < 0));
    if (has_eps(layer.norm)) constants.push_back(layer.eps);
    if (layer.activation != 0) {
      add(Op::activation);
      numbers.push_back(layer.activation);
      const int count = activations()[layer.activation].parameter_count();
      for (int i = 0; i < count; ++i) constants.push_back(layer.parameters[i]);
    }
    if (layer.noise >= 0) {
      add(Op::noise);
    } else if (layer.dropout > 0) {
      add(Op::dropout);
      constants.push_back(layer.dropout);
    }
    if (layer.skip > 0) add(layer.skip == 1 ? Op::skip : Op::skip_over);
    if (layer.skip > 1) numbers.push_back(layer.skip);
    if (layer.gates) add(Op::gate);
  }
}

Program decode(const int64_t* numbers, int64_t count, const double* constants,
               int64_t constant_count) {
  Program program;
  Reader<int64_t> codes(numbers, count);
  Reader<double> rest(constants, constant_count);
  int64_t last = -1;    // op of the present layer
  int64_t skipped = 0;  // layers up to the last one whose output something is added to
  while (!codes.at_end()) {
    const int64_t code = codes.take("an op");
    if (code < 0 || code > static_cast<int64_t>(Op::gate))
      refuse("with the unknown op " + std::to_string(code));
    const Op op = static_cast<Op>(code);
    const Op* const begun = std::find(kBeginnings, kBeginnings + kNorms, op);
    if (begun != kBeginnings + kNorms) {
      const auto norm = static_cast<Norm>(begun - kBeginnings);
      const int64_t has = has_number(norm) ? codes.take("whether there is a bias") : 0;
      if (has < 0 || has > (has_eps(norm) ? 1 + kNoWeight : 1))
        refuse("with a layer of unknown parameters, " + std::to_string(has));
      program.add(norm, has_eps(norm) ? rest.take("a norm's eps") : 0, (has & 1) != 0,
                  (has & kNoWeight) == 0);
      last = static_cast<int64_t>(Op::linear);
      continue;
    }
    if (program.layers.empty()) refuse("that does not begin with a linear op or a norm");
    // A dropout and the noise that it becomes are one, and so are the two ops of a sum.
    if (code <= last || (op == Op::skip_over && last == static_cast<int64_t>(Op::skip)) ||
        (op == Op::noise && last == static_cast<int64_t>(Op::dropout)))
      refuse("whose ops of a layer are out of order");
    last = code;
    LayerOps& layer = program.layers.back();
    if (op == Op::activation) {
      const int64_t number = codes.take("an activation");
      if (number < 0 || number >= static_cast<int64_t>(activations().size()))
        refuse("with the unknown activation " + std::to_string(number));
      layer.activation = static_cast<int>(number);
      for (int i = 0; i < activations()[number].parameter_count(); ++i)
        layer.parameters[i] = rest.take("an activation's parameter");
      if (!activations()[number].takes(layer.parameters))
        refuse("with parameters that " + std::string(activations()[number].name) +
               " does not take");
    } else if (op == Op::dropout) {
      layer.dropout = rest.take("a dropout's probability");
    } else if (op == Op::noise) {
      layer.noise = program.operands++;
    } else if (op == Op::gate) {
      const int64_t before = program.layers.size() - 2;
      const bool fits =
          before >= 0 && layer.is_half_of_gate() && program.layers[before].is_half_of_gate();
      if (!fits) refuse("with a gate that is not of two linear ops");
      layer.gates = true;
    } else {
      const int64_t span = op == Op::skip ? 1 : codes.take("how many layers are skipped");
      if (span < 1 || span > std::min<int64_t>(program.layers.size() - skipped, kMostSkipped))
        refuse("that skips over " + std::to_string(span) + " layers, of which there are " +
               std::to_string(program.layers.size() - skipped) + " since the last ones skipped");
      if (span <= program.layers.size() && program.layers[program.layers.size() - span].gates)
        refuse("that skips over half of a gate");
      skipped = program.layers.size();
      layer.skip = static_cast<int>(span);
    }
  }
  if (!rest.at_end()) refuse("with more constants than its ops have");
  return program;
}

}  // namespace fastmlp
