#include "python/read_network.h"

#include <ATen/ATen.h>
#include <ATen/PythonTorchFunctionTLS.h>
#include <ATen/autocast_mode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <c10/core/impl/TorchDispatchModeTLS.h>
#include <torch/csrc/PyInterpreter.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/jit/frontend/tracer.h>

#include <algorithm>
#include <array>
#include <limits>
#include <utility>

namespace py = pybind11;

namespace fastmlp {

namespace {

// Whether a mode is in force that might see or replace torch's functions. The one that stands for
// `with torch.device(…)` and torch.set_default_device() only completes the calls that make tensors
// of nothing, and there is none here.
bool has_function_mode() {
  for (int64_t i = 0; i < at::impl::PythonTorchFunctionTLS::stack_len(); ++i) {
    PyObject* const mode =
        at::impl::PythonTorchFunctionTLS::get_stack_at(i)->ptr(getPyInterpreter());
    if (reinterpret_cast<PyObject*>(Py_TYPE(mode)) != known().device_context) return true;
  }
  return false;
}

}  // namespace

const char* mode_in_the_way() {
  if (c10::impl::tls_is_dispatch_key_included(c10::DispatchKey::FuncTorchDynamicLayerFrontMode)) {
    return "a torch.func transform is active";
  }
  if (c10::impl::TorchDispatchModeTLS::any_modes_set()) return "a TorchDispatchMode is active";
  if (has_function_mode()) return "a TorchFunctionMode is active";
  if (at::autocast::is_autocast_enabled(at::kCPU)) return "autocast is enabled";
  if (torch::jit::tracer::isTracing()) return "torch.jit.trace is active";
  return nullptr;
}

const char* operand_in_the_way(PyObject* object, const at::Tensor*& tensor) {
  if (!THPVariable_CheckTypeExact(Py_TYPE(object)))
    return "not a torch.Tensor, or a subclass of it";
  tensor = &THPVariable_Unpack(object);
  if (!tensor->is_cpu()) return "not on the CPU";
  if (tensor->layout() != at::kStrided || tensor->is_nested() || tensor->is_quantized())
    return "not a dense strided tensor";
  if (tensor->scalar_type() != at::kFloat && tensor->scalar_type() != at::kDouble)
    return "not float32 or float64";
  if (tensor->is_conj() || tensor->is_neg() || tensor->_is_zerotensor()) return "a lazy view";
  return nullptr;
}

at::Tensor Network::flat(const at::Tensor& input) const {
  at::Tensor rows = input;
  if (flattens == Flattens::flatten) {
    if (input.dim() < 2) return {};
    rows = input.flatten(1);
  } else if (flattens != Flattens::no) {
    const auto sizes = row_features < 0 ? std::array{input.size(0), int64_t{-1}}
                                        : std::array{int64_t{-1}, row_features};
    rows = flattens == Flattens::view ? input.view(sizes) : input.reshape(sizes);
  }
  if (in_features >= 0 && rows.size(-1) != in_features) return {};
  if (draws_first && !rows.is_contiguous() && rows.is_non_overlapping_and_dense()) return {};
  if (takes_rows && (rows.dim() != 2 || (has_batch_norm(program) && rows.size(0) < 2))) return {};
  return rows;
}

int64_t Network::out_features() const {
  int64_t l = program.layers.size() - 1;
  while (l >= 0 && !program.layers[l].has_whole_weight()) --l;
  return l < 0 ? in_features : operands[program.layers[l].weight].size(0);
}

std::string Network::append(PyObject* weight, PyObject* bias, Norm norm, double eps, PyObject* mean,
                            PyObject* variance) {
  const bool has_weight = weight != Py_None || norm == Norm::none;
  int64_t features = out_features();
  std::string reason;
  const auto take = [&](PyObject* object, const char* what, const char* all) {
    if (!reason.empty()) return;
    const at::Tensor* tensor = nullptr;
    if (const char* in_the_way = operand_in_the_way(object, tensor)) {
      reason = std::string(what) + " is " + in_the_way;
      return;
    }
    const bool is_matrix = object == weight && norm == Norm::none;
    if (dtype == at::ScalarType::Undefined) dtype = tensor->scalar_type();
    if (tensor->scalar_type() != dtype) {
      reason = std::string("input and ") + all + " differ in dtype";
    } else if (tensor->dim() != (is_matrix ? 2 : 1)) {
      reason =
          std::string(what) + (is_matrix ? " is not two-dimensional" : " is not one-dimensional");
    } else if (object == weight) {
      if (norm != Norm::prelu) features = tensor->size(0);
    } else if (features >= 0 && tensor->size(0) != features) {
      reason = std::string(what) + " is not of shape (out_features,)";
    } else if ((object == mean || object == variance) && tensor->requires_grad()) {
      reason = std::string(what) + " requires a gradient";
    }
    operands.push_back(*tensor);
  };
  if (has_weight) take(weight, norm == Norm::none ? "a weight" : "a norm's weight", "weights");
  if (bias != Py_None) take(bias, "a bias", "biases");
  if (norm == Norm::fixed) {
    take(mean, "a norm's mean", "means");
    take(variance, "a norm's variance", "variances");
  }
  program.add(norm, eps, bias != Py_None, has_weight);
  return reason;
}

namespace {

template <typename Numbers, typename Convert>
void read_numbers(PyObject* list, Numbers& numbers, const Convert& convert) {
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list); ++i)
    numbers.push_back(convert(PySequence_Fast_GET_ITEM(list, i)));
  if (PyErr_Occurred()) throw py::error_already_set();
}

}  // namespace

std::string read(PyObject* const* args, Network& network) {
  PyObject* const operands = args[1];
  Numbers numbers;
  Constants constants;
  read_numbers(args[2], numbers, PyLong_AsLongLong);
  read_numbers(args[3], constants, PyFloat_AsDouble);
  const Program program =
      decode(numbers.begin(), numbers.size(), constants.begin(), constants.size());
  if (PySequence_Fast_GET_SIZE(operands) != program.operands)
    return "operands and program differ in number";
  for (const LayerOps& layer : program.layers) {
    const auto operand = [&](int place) {
      return place >= 0 ? PySequence_Fast_GET_ITEM(operands, place) : Py_None;
    };
    auto reason = network.append(operand(layer.weight), operand(layer.bias), layer.norm, layer.eps,
                                 operand(layer.mean), operand(layer.variance));
    if (!reason.empty()) return reason;
    if (!(layer.dropout >= 0 && layer.dropout <= 1)) return "a dropout is not a probability";
  }
  network.program = program;
  return {};
}

Known& known() {
  static Known instance;
  return instance;
}

bool is_empty_dict(PyObject* object) {
  return object && PyDict_Check(object) && PyDict_Size(object) == 0;
}

bool has_global_hooks() {
  const auto& all = known().global_hooks;
  return !std::all_of(all.begin(), all.end(), is_empty_dict);
}

bool is_hooked(PyObject* state) {
  if (PyDict_GetItemWithError(state, known().forward)) return true;
  for (PyObject* name : known().hooks) {
    if (!is_empty_dict(PyDict_GetItemWithError(state, name))) return true;
  }
  return false;
}

namespace {

// What has been read of a layer: what may still belong to it.
enum class Stage { linear, activation, closed };

// Reads the modules of a Sequential one after the other.
class Reader {
 public:
  explicit Reader(Network& network) : network_(network) {}

  bool read(PyObject* modules) {
    Py_ssize_t position = 0;
    PyObject *key = nullptr, *module = nullptr;
    if (PyTuple_Check(modules)) {
      while (position < PyTuple_GET_SIZE(modules)) {
        if (!read_module(PyTuple_GET_ITEM(modules, position++))) return false;
      }
      return true;
    }
    while (PyDict_Next(modules, &position, &key, &module)) {
      if (!read_module(module)) return false;
    }
    return true;
  }

 private:
  LayerOps& layer() { return network_.program.layers.back(); }
  const InlineVector<LayerOps, 8>& layers() const { return network_.program.layers; }

  // Whether a layer's output lies in memory as the network's input does, where nothing is added.
  bool lies_as_input(int64_t l) const { return layers()[l].norm >= Norm::pass && is_given_so(l); }
  // … or what it is given.
  bool is_given_so(int64_t l) const {
    if (l == 0) return true;
    const int skip = layers()[l - 1].skip;
    return lies_as_input(l - 1) || (skip > 0 && is_given_so(l - skip));
  }

  bool read_module(PyObject* module) {
    if (module == Py_None) return false;
    const py::object state =
        py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module, nullptr));
    if (!state || is_hooked(state.ptr())) return false;
    PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(module));
    bool is_known = true;
    const bool fits = read_as(type, state.ptr(), is_known);
    if (is_known) return fits;
    PyObject* const like = PyDict_GetItemWithError(names_.read_as, type);
    if (!like) return false;
    const auto forward = py::reinterpret_steal<py::object>(PyObject_GetAttr(type, names_.forward));
    if (forward.ptr() != PyTuple_GET_ITEM(like, 1)) return false;  // it has become another
    return read_as(PyTuple_GET_ITEM(like, 0), state.ptr(), is_known);
  }

  bool read_as(PyObject* type, PyObject* state, bool& is_known) {
    if (type == names_.linear) return read_linear(state);
    if (type == names_.dropout) return read_dropout(state);
    if (type == names_.fused_linear) return read_fused_linear(state);
    if (type == names_.residual) return read_residual(state);
    if (type == names_.gated) return read_gated(state);
    if (type == names_.flatten) return read_flatten(state);
    if (type == names_.rows) return read_rows(state);
    if (type == names_.layer_norm) return read_norm(state, Norm::layer);
    if (type == names_.rms_norm) return read_norm(state, Norm::rms);
    if (type == names_.batch_norm) return read_batch_norm(state);
    if (type == names_.softmax) return read_softmax(state, Norm::softmax);
    if (type == names_.log_softmax) return read_softmax(state, Norm::log_softmax);
    if (type == names_.prelu) return read_prelu(state);
    for (PyObject* container : names_.containers) {
      if (type == container) return read_children(state);
    }
    return read_activation(type, state, is_known);
  }

  // Rows of an image as one: before the first layer alone.
  bool read_flatten(PyObject* state) {
    const auto is = [&](PyObject* name, long number) {
      PyObject* const value = PyDict_GetItemWithError(state, name);
      return value && PyLong_CheckExact(value) && PyLong_AsLong(value) == number;
    };
    if (!is_first()) return false;
    network_.flattens = Network::Flattens::flatten;
    return is(names_.start_dim, 1) && is(names_.end_dim, -1);
  }

  bool is_first() const {
    return residuals_ == 0 && network_.program.layers.empty() &&
           network_.flattens == Network::Flattens::no;
  }

  bool read_rows(PyObject* state) {
    PyObject* const features = PyDict_GetItemWithError(state, names_.features);
    PyObject* const reshapes = PyDict_GetItemWithError(state, names_.reshapes);
    if (!is_first() || !features || !PyLong_CheckExact(features) || !reshapes) return false;
    network_.row_features = PyLong_AsLongLong(features);
    network_.flattens = reshapes == Py_True ? Network::Flattens::reshape : Network::Flattens::view;
    return true;
  }

  // The activation and its parameters.
  bool read_activation(PyObject* type, PyObject* state, bool& is_known) {
    for (const KnownActivation& one : names_.activations) {
      if (one.type != type) continue;
      const ActivationInfo& info = activations()[one.number];
      if (one.mode_name) {
        PyObject* const mode = PyDict_GetItemWithError(state, one.mode_name);
        if (!mode || !PyUnicode_Check(mode)) return false;
        if (PyUnicode_CompareWithASCIIString(mode, info.mode) != 0) continue;
      }
      if (one.number == 0) return true;
      if (stage_ != Stage::linear) {
        // What it would write is read by others, too.
        if (network_.program.layers.size() == begin_ &&
            PyDict_GetItemWithError(state, names_.inplace) == Py_True)
          return false;
        pass();
      }
      stage_ = Stage::activation;
      layer().activation = one.number;
      for (size_t i = 0; i < one.parameters.size(); ++i) {
        PyObject* const parameter = PyDict_GetItemWithError(state, one.parameters[i]);
        // Not of whatever float() takes: torch refuses strings, and differentiates tensors.
        if (!parameter || !(PyFloat_Check(parameter) || PyLong_Check(parameter)) ||
            !read_number(parameter, layer().parameters[i]))
          return false;
      }
      return info.takes(layer().parameters);
    }
    return is_known = false;
  }

  bool read_linear(PyObject* state) {
    PyObject* parameters = PyDict_GetItemWithError(state, names_.parameters);
    if (!parameters || !PyDict_Check(parameters)) return false;
    PyObject* weight = PyDict_GetItemWithError(parameters, names_.weight);
    PyObject* bias = PyDict_GetItemWithError(parameters, names_.bias);
    stage_ = Stage::linear;
    return weight && bias && network_.append(weight, bias).empty();
  }

  // What follows a layer begins another where that has its own already.
  void pass() { network_.program.add(Norm::pass, 0, false); }

  // A parameter or a buffer, or None where there is none; null: it is computed.
  PyObject* tensor(PyObject* state, PyObject* kind, PyObject* name) {
    PyObject* const all = PyDict_GetItemWithError(state, kind);
    return all && PyDict_Check(all) ? PyDict_GetItemWithError(all, name) : nullptr;
  }

  // Whether the last layer's input has as many features as a module says.
  bool has_features(int64_t before, PyObject* features) {
    return PyLong_CheckExact(features) && has_features(before, PyLong_AsLongLong(features));
  }
  bool has_features(int64_t before, int64_t expected) {
    if (before < 0 && network_.in_features < 0) network_.in_features = expected;
    return before < 0 || before == expected;
  }

  bool read_softmax(PyObject* state, Norm norm) {
    PyObject* const dim = PyDict_GetItemWithError(state, names_.dim);
    if (!dim || !PyLong_CheckExact(dim)) return false;
    const long number = PyLong_AsLong(dim);
    if (number != -1 && number != 1) return false;
    network_.takes_rows = network_.takes_rows || number == 1;
    network_.program.add(norm, 0, false);
    stage_ = Stage::linear;
    return true;
  }

  bool read_prelu(PyObject* state) {
    PyObject* const weight = tensor(state, names_.parameters, names_.weight);
    if (!weight || weight == Py_None) return false;
    const int64_t before = network_.out_features();
    stage_ = Stage::linear;
    if (!network_.append(weight, Py_None, Norm::prelu).empty()) return false;
    const int64_t weights = network_.operands.back().size(0);
    if (weights == 1) return true;
    network_.takes_rows = true;
    return has_features(before, weights);
  }

  // As BatchNorm1d.forward reads itself, of rows.
  bool read_batch_norm(PyObject* state) {
    const auto of = [&](PyObject* name) { return PyDict_GetItemWithError(state, name); };
    const auto buffer = [&](PyObject* name) { return tensor(state, names_.buffers, name); };
    PyObject *const
        weight = tensor(state, names_.parameters, names_.weight),
        *const bias = tensor(state, names_.parameters, names_.bias),
        *const mean = buffer(names_.running_mean), *const variance = buffer(names_.running_var),
        *const batches = buffer(names_.num_batches_tracked), *const momentum = of(names_.momentum),
        *const features = of(names_.num_features), *const training = of(names_.training),
        *const tracks = of(names_.track_running_stats);
    double eps = 0;
    if (!weight || !bias || !mean || !variance || !batches || !momentum || !features || !training ||
        !tracks || !PyBool_Check(training) || !PyBool_Check(tracks) ||
        !read_number(of(names_.eps), eps) || (mean == Py_None) != (variance == Py_None) ||
        (weight == Py_None && bias != Py_None) ||
        (training == Py_True && tracks == Py_True && mean == Py_None && batches != Py_None))
      return false;
    const bool is_trained = training == Py_True, finds = is_trained || mean == Py_None;
    if (finds ? !(eps > 0) : !(eps >= 0)) return false;
    const int64_t before = network_.out_features();
    stage_ = Stage::linear;
    network_.takes_rows = true;
    const Norm norm = finds ? Norm::batch : Norm::fixed;
    if (!network_.append(weight, bias, norm, eps, mean, variance).empty() ||
        !has_features(before, features))
      return false;
    if (!is_trained || mean == Py_None || tracks == Py_False) return true;
    return read_averages(mean, variance, batches, momentum, PyLong_AsLongLong(features));
  }

  bool read_averages(PyObject* mean, PyObject* variance, PyObject* batches, PyObject* momentum,
                     int64_t features) {
    RunningAverage average;
    average.layer = network_.program.layers.size() - 1;
    average.momentum = -1;
    if (momentum != Py_None &&
        (!read_number(momentum, average.momentum) || !(average.momentum >= 0)))
      return false;
    for (const auto& [object, place] :
         {std::pair(mean, &average.mean), {variance, &average.variance}}) {
      const at::Tensor* tensor = nullptr;
      if (operand_in_the_way(object, tensor) || tensor->scalar_type() != network_.dtype ||
          tensor->dim() != 1 || tensor->size(0) != features || !tensor->is_contiguous() ||
          tensor->requires_grad())
        return false;
      *place = *tensor;
    }
    if (batches != Py_None) {
      if (!THPVariable_CheckTypeExact(Py_TYPE(batches))) return false;
      const at::Tensor& count = THPVariable_Unpack(batches);
      if (!count.is_cpu() || count.scalar_type() != at::kLong || count.numel() != 1 ||
          count.layout() != at::kStrided)
        return false;
      average.batches = count;
    }
    network_.averages.push_back(average);
    return true;
  }

  // Over the last dimension alone.
  bool read_norm(PyObject* state, Norm norm) {
    PyObject* const parameters = PyDict_GetItemWithError(state, names_.parameters);
    PyObject* const shape = PyDict_GetItemWithError(state, names_.normalized_shape);
    PyObject* const given = PyDict_GetItemWithError(state, names_.eps);
    if (!parameters || !PyDict_Check(parameters) || !shape || !PyTuple_Check(shape) || !given ||
        PyTuple_GET_SIZE(shape) != 1)
      return false;
    PyObject* const weight = PyDict_GetItemWithError(parameters, names_.weight);
    PyObject* bias = PyDict_GetItemWithError(parameters, names_.bias);
    if (!bias && norm == Norm::rms) bias = Py_None;  // has none
    if (!weight || !bias) return false;
    double eps = 0;
    if (given == Py_None && norm == Norm::rms) {  // torch's, of the weight's dtype
      if (!THPVariable_Check(weight)) return false;
      eps = THPVariable_Unpack(weight).scalar_type() == at::kFloat
                ? std::numeric_limits<float>::epsilon()
                : std::numeric_limits<double>::epsilon();
    } else if (!(PyFloat_Check(given) || PyLong_Check(given)) || !read_number(given, eps)) {
      return false;
    }
    stage_ = Stage::linear;
    const int64_t before = network_.out_features();
    if (!network_.append(weight, bias, norm, eps).empty()) return false;
    return has_features(before, PyTuple_GET_ITEM(shape, 0));
  }

  // A linear layer that knows its activation by name.
  bool read_fused_linear(PyObject* state) {
    PyObject* const name = PyDict_GetItemWithError(state, names_.activation);
    if (!name || !PyUnicode_Check(name) || !read_linear(state)) return false;
    PyObject* const number = PyDict_GetItemWithError(names_.activation_names, name);
    if (!number) return false;
    layer().activation = static_cast<int>(PyLong_AsLong(number));
    const ActivationInfo& info = activations()[layer().activation];
    for (int i = 0; i < info.parameter_count(); ++i)
      layer().parameters[i] = info.parameters[i].value;
    if (layer().activation != 0) stage_ = Stage::activation;
    return true;
  }

  // As float(object); false where it is no number, whose reason Python's reader knows.
  static bool read_number(PyObject* object, double& number) {
    if (!object) return false;
    number = PyFloat_AsDouble(object);
    if (number != -1.0 || !PyErr_Occurred()) return true;
    PyErr_Clear();
    return false;
  }

  bool read_dropout(PyObject* state) {
    PyObject* const training = PyDict_GetItemWithError(state, names_.training);
    PyObject* const inplace = PyDict_GetItemWithError(state, names_.inplace);
    PyObject* const p = PyDict_GetItemWithError(state, names_.p);
    double probability = 0;
    if (!training || inplace != Py_False || !read_number(p, probability)) return false;
    if (!(probability >= 0 && probability <= 1)) return false;
    if (training == Py_False || probability == 0) return true;
    if (training != Py_True) return false;
    if (stage_ == Stage::closed) pass();
    network_.draws_first = network_.draws_first || lies_as_input(layers().size() - 1);
    layer().dropout = probability;
    stage_ = Stage::closed;
    return true;
  }

  // The modules in a module. It may hold itself.
  bool read_children(PyObject* state) {
    PyObject* const modules = PyDict_GetItemWithError(state, names_.modules);
    if (!modules || !PyDict_Check(modules)) return false;
    if (Py_EnterRecursiveCall(" while reading the blocks of a FusedMLP") != 0) return false;
    const bool fits = read(modules);
    Py_LeaveRecursiveCall();
    return fits;
  }

  // Two linear layers of one input, each with its activation.
  bool read_gated(PyObject* state) {
    PyObject* const modules = PyDict_GetItemWithError(state, names_.modules);
    if (!modules || !PyDict_Check(modules) || PyDict_Size(modules) != 2) return false;
    const auto& layers = network_.program.layers;
    const int64_t before = layers.size();
    const int64_t outer = begin_;
    ++residuals_;
    PyObject *key = nullptr, *module = nullptr;
    for (Py_ssize_t position = 0; PyDict_Next(modules, &position, &key, &module);) {
      begin_ = layers.size();
      stage_ = Stage::closed;
      if (!read_module(module) || layers.size() != begin_ + 1 || !layer().is_half_of_gate())
        return false;
    }
    --residuals_;
    begin_ = outer;
    const auto weight = [&](int64_t l) { return network_.operands[layers[l].weight].sizes(); };
    if (weight(before) != weight(before + 1)) return false;
    layer().gates = true;
    stage_ = Stage::closed;
    return true;
  }

  bool read_residual(PyObject* state) {
    const int64_t before = network_.program.layers.size();
    stage_ = Stage::closed;
    ++residuals_;
    const int64_t outer = std::exchange(begin_, before);
    if (!read_children(state)) return false;
    --residuals_;
    begin_ = outer;
    if (network_.program.layers.size() > before && layer().gates) pass();
    const auto& layers = network_.program.layers;
    const int64_t span = layers.size() - before;
    if (span < 1 || span > kMostSkipped) return false;
    bool has_product = false;
    for (int64_t l = before; l < layers.size(); ++l) {
      if (layers[l].skip > 0) return false;                // a block in a block
      if (!has_product && layers[l].has_whole_weight()) {  // whose input is the block's
        if (network_.operands[layers[l].weight].size(-1) != network_.out_features()) return false;
      }
      has_product = has_product || layers[l].norm == Norm::none;
    }
    if (!has_product) return false;
    layer().skip = static_cast<int>(span);
    stage_ = Stage::closed;
    return true;
  }

  const Known& names_ = known();
  Network& network_;
  Stage stage_ = Stage::closed;
  int residuals_ = 0;  // that are open
  int64_t begin_ = 0;  // the first layer of the innermost one
};

}  // namespace

bool recognise(PyObject* modules, Network& network) {
  return !has_global_hooks() && Reader(network).read(modules) &&
         std::any_of(network.program.layers.begin(), network.program.layers.end(),
                     [](const LayerOps& layer) { return layer.norm == Norm::none; });
}

}  // namespace fastmlp
