#include "network/program.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace fastmlp {
namespace {

[[noreturn]] void refuse(const std::string& what) {
  throw std::runtime_error("fastmlp: expected the program of a network, got one " + what);
}

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

LayerOps& Program::add(Norm norm, double eps, bool bias) {
  LayerOps layer;
  layer.norm = norm;
  layer.eps = eps;
  layer.weight = operands++;
  if (bias) layer.bias = operands++;
  layers.push_back(layer);
  return layers.back();
}

void encode(const Program& program, Numbers& numbers, Constants& constants) {
  const auto add = [&](Op op) { numbers.push_back(static_cast<int64_t>(op)); };
  for (const LayerOps& layer : program.layers) {
    add(layer.norm == Norm::none    ? Op::linear
        : layer.norm == Norm::layer ? Op::layer_norm
                                    : Op::rms_norm);
    numbers.push_back(layer.bias >= 0);
    if (layer.norm != Norm::none) constants.push_back(layer.eps);
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
    if (code < 0 || code > static_cast<int64_t>(Op::skip_over))
      refuse("with the unknown op " + std::to_string(code));
    const Op op = static_cast<Op>(code);
    if (op == Op::linear || op == Op::layer_norm || op == Op::rms_norm) {
      const Norm norm = op == Op::linear       ? Norm::none
                        : op == Op::layer_norm ? Norm::layer
                                               : Norm::rms;
      const bool bias = codes.take("whether there is a bias") != 0;
      program.add(norm, norm == Norm::none ? 0 : rest.take("a norm's eps"), bias);
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
    } else {
      const int64_t span = op == Op::skip ? 1 : codes.take("how many layers are skipped");
      if (span < 1 || span > std::min<int64_t>(program.layers.size() - skipped, kMostSkipped))
        refuse("that skips over " + std::to_string(span) + " layers, of which there are " +
               std::to_string(program.layers.size() - skipped) + " since the last ones skipped");
      skipped = program.layers.size();
      layer.skip = static_cast<int>(span);
    }
  }
  if (!rest.at_end()) refuse("with more constants than its ops have");
  return program;
}

}  // namespace fastmlp
