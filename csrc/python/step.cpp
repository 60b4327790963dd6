// The Python call of a training step: reads the user's module, loss options and optimizer anew each
// time, since they are the truth and may have changed.
#include "python/step.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include "python/lock.h"
#include "python/read_network.h"
#include "torch/step.h"

namespace py = pybind11;

namespace fastmlp {
namespace {

// A string that dicts are asked for, made once: looking items up by C strings took a tenth of a
// small network's step.
PyObject* interned(const char* text) { return PyUnicode_InternFromString(text); }

struct Keys {
  PyObject *params = interned("params"), *maximize = interned("maximize"),
           *differentiable = interned("differentiable"), *capturable = interned("capturable"),
           *fused = interned("fused"), *reduction = interned("reduction"),
           *ignore_index = interned("ignore_index"), *buffers = interned("_buffers"),
           *model = interned("model"), *loss = interned("loss"), *optimizer = interned("optimizer"),
           *hooks = interned("_hooks"), *max_grad_norm = interned("max_grad_norm"),
           *forward = interned("forward"), *modules = interned("_modules"),
           *param_groups = interned("param_groups"), *state = interned("state"),
           *defaults = interned("defaults"), *opt_called = interned("_opt_called"),
           *correct = interned("correct"), *chain = interned("_chain"),
           *others = interned("_others");
  // Of each optimizer and loss, in the order of its info.
  struct Of {
    std::vector<PyObject*> options, tensors, scalars;  // tensors: a parameter's state, a loss's own
  };
  std::vector<Of> optimizers, losses;

  Keys() {
    for (const OptimizerInfo& info : fastmlp::optimizers()) {
      Of of;
      for (const OptionInfo& one : info.options) add(one.name, of.options);
      for (const StateInfo& one : info.states) add(one.key, of.tensors);
      for (const StateInfo& one : info.scalars) add(one.key, of.scalars);
      optimizers.push_back(of);
    }
    for (const LossInfo& info : fastmlp::losses()) {
      Of of;
      for (const OptionInfo& one : info.options) add(one.name, of.options);
      for (const LossOperandInfo& one : info.operands) add(one.name, of.tensors);
      losses.push_back(of);
    }
  }

 private:
  static void add(const char* name, std::vector<PyObject*>& names) {
    if (name) names.push_back(interned(name));
  }
};

const Keys& keys() {
  static const Keys instance;
  return instance;
}

// A borrowed item of a dict, or null.
PyObject* find(PyObject* dict, PyObject* key) {
  PyObject* value = PyDict_GetItemWithError(dict, key);
  if (!value && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

std::string text(PyObject* string) { return py::str(py::handle(string)); }

// what: whose dict it is.
PyObject* item(PyObject* dict, PyObject* key, const char* what) {
  PyObject* value = find(dict, key);
  if (!value) throw py::key_error(std::string("the ") + what + " has no " + text(key));
  return value;
}

constexpr const char* kGroup = "optimizer's parameter group";

double number(PyObject* object) {
  const double value = PyFloat_AsDouble(object);  // of a 0-dimensional tensor, too
  if (value == -1.0 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

bool flag(PyObject* group, PyObject* key) {
  PyObject* value = find(group, key);
  return value && PyObject_IsTrue(value) == 1;
}

// One option of a dict, which may be a pair of numbers. what: whose dict it is.
void read_option(PyObject* dict, PyObject* key, const OptionInfo& option, const char* what,
                 double*& next) {
  PyObject* const value = option.optional ? find(dict, key) : item(dict, key, what);
  if (!value) {
    *next++ = option.absent;
  } else if (option.kind == OptionInfo::flag) {
    *next++ = PyObject_IsTrue(value) == 1;
  } else if (option.kind == OptionInfo::number) {
    *next++ = number(value);
  } else {
    if (!PySequence_Check(value) || PySequence_Size(value) != 2)
      throw py::type_error(std::string("expected two ") + option.name);
    for (int n = 0; n < 2; ++n) {
      const auto one = py::reinterpret_steal<py::object>(PySequence_GetItem(value, n));
      *next++ = number(one.ptr());
    }
  }
}

[[noreturn]] void refuse(const std::string& what) {
  throw std::runtime_error("fastmlp.TrainStep: " + what);
}

// The classes, in the order of the extension's lists; of a loss that stands there twice, its first.
std::vector<PyObject*>& known_losses() {
  static std::vector<PyObject*> classes;
  return classes;
}
std::vector<PyObject*>& known_optimizers() {
  static std::vector<PyObject*> classes;
  return classes;
}

// What an operand was computed from would have to be trained, too.
const at::Tensor& without_gradient(PyObject* object, const char* name) {
  if (!THPVariable_Check(object))
    throw py::type_error(std::string("fastmlp.TrainStep: expected the ") + name +
                         " to be a torch.Tensor, got " + Py_TYPE(object)->tp_name);
  const at::Tensor& tensor = THPVariable_Unpack(object);
  if (at::GradMode::is_enabled() && tensor.requires_grad())
    refuse(std::string("the ") + name +
           " requires a gradient, and would get none here. Pass its detach(), or use the model's "
           "own forward and backward to train what it was computed from");
  return tensor;
}

// Of a TrainStep: read anew in each call, since they are the truth and may have been replaced.
class StepObjects {
 public:
  explicit StepObjects(PyObject* step) : state_(dict_of(step)) {
    const Keys& k = keys();
    loss = attribute(k.loss);
    loss_kind = kind_of(loss, known_losses(), "loss");
    PyObject* const optimizer = attribute(k.optimizer);
    optimizer_kind = kind_of(optimizer, known_optimizers(), "optimizer");
    optimizer_state_ = dict_of(optimizer);
    model_state_ = dict_of(attribute(k.model));
    if (find(model_state_.ptr(), k.forward)) refuse("the model has a forward of its own");
    others = attribute(k.others);
    hooks = attribute(k.hooks);
    if (!PyTuple_Check(hooks) || !PyTuple_Check(others))
      throw py::type_error("expected tuples of dicts of hooks, and of parameters");
    PyObject* const norm = attribute(k.max_grad_norm);
    max_grad_norm = norm == Py_None ? 0 : number(norm);
  }

  // others: parameters of the model that its forward does not use, which have no gradient.
  PyObject *loss = nullptr, *hooks = nullptr, *others = nullptr;
  int loss_kind = 0, optimizer_kind = 0;
  double max_grad_norm = 0;

  PyObject* groups() const {
    return item(optimizer_state_.ptr(), keys().param_groups, "optimizer");
  }
  PyObject* defaults() const { return item(optimizer_state_.ptr(), keys().defaults, "optimizer"); }
  PyObject* states() const { return item(optimizer_state_.ptr(), keys().state, "optimizer"); }

  // The network; false where the modules are none, of which Python's reader knows why.
  bool read_network(Network& network) const {
    PyObject* modules = attribute(keys().chain);
    if (!PyTuple_Check(modules)) modules = item(model_state_.ptr(), keys().modules, "model");
    if (!PyTuple_Check(modules) && !PyDict_Check(modules))
      throw py::type_error("expected the model's modules");
    const bool found = recognise(modules, network);
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    return found;
  }

  // … beside the input, as the first layer takes it.
  bool read_network(PyObject* input_object, at::Tensor& input, Network& network) const {
    if (const char* reason = mode_in_the_way()) refuse(std::string("cannot run while ") + reason);
    const at::Tensor* given = nullptr;
    if (const char* reason = operand_in_the_way(input_object, given))
      refuse(std::string("the input is ") + reason);
    if (given->dim() == 0) refuse("the input has no dimensions");
    without_gradient(input_object, "input");
    network.dtype = given->scalar_type();
    if (!read_network(network)) return false;
    input = network.flat(*given);
    if (input.defined()) return true;
    const auto sizes = c10::str(given->sizes());
    const bool flattens = network.flattens != Network::Flattens::no;
    if (flattens && given->dim() < 2)
      refuse("the input has one dimension, and the model begins with Flatten");
    if (network.takes_rows && !flattens && given->dim() != 2)
      refuse(
          "expected an input of two dimensions for a BatchNorm1d, a PReLU of several weights or a "
          "softmax over dimension 1, got one of shape " +
          sizes);
    if (network.draws_first && !given->is_contiguous())
      refuse("expected a contiguous input for dropout that is drawn in its order, got strides " +
             c10::str(given->strides()));
    if (given->size(0) < 2)
      throw py::value_error(
          "Expected more than 1 value per channel when training, got an input of "
          "shape " +
          sizes);
    refuse("expected an input of " + std::to_string(network.in_features) +
           " features, got one of shape " + sizes);
  }

  // What torch.optim's schedulers look for, and the last step's right predictions; -1: None.
  void finish(int64_t correct) const {
    const auto told = py::reinterpret_steal<py::object>(correct < 0 ? Py_NewRef(Py_None)
                                                                    : PyLong_FromLongLong(correct));
    if (PyDict_SetItem(optimizer_state_.ptr(), keys().opt_called, Py_True) != 0 ||
        PyDict_SetItem(state_.ptr(), keys().correct, told.ptr()) != 0)
      throw py::error_already_set();
  }

 private:
  static py::object dict_of(PyObject* object) {
    auto dict = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(object, nullptr));
    if (!dict) throw py::error_already_set();
    return dict;
  }

  PyObject* attribute(PyObject* name) const {
    PyObject* const value = find(state_.ptr(), name);
    if (!value) throw py::type_error("expected a TrainStep, got one without " + text(name));
    return value;
  }

  static int kind_of(PyObject* object, const std::vector<PyObject*>& kinds, const char* what) {
    const auto type = reinterpret_cast<PyObject*>(Py_TYPE(object));
    const auto found = std::find(kinds.begin(), kinds.end(), type);
    if (found == kinds.end())
      refuse(std::string("the ") + what + " has become a " + Py_TYPE(object)->tp_name +
             ". Make the TrainStep anew");
    return static_cast<int>(found - kinds.begin());
  }

  const py::object state_;
  py::object optimizer_state_, model_state_;
};

class Optimizer {
 public:
  // runs: whether a step follows; accumulators of gradients, and their hooks, come and go.
  Optimizer(const StepObjects& step, const Network& network, bool runs = true)
      : kind_(step.optimizer_kind),
        info_(optimizers()[kind_]),
        keys_(keys().optimizers[kind_]),
        defaults_(step.defaults()),
        state_(step.states()),
        network_(network),
        others_(step.others),
        runs_(runs) {
    PyObject* groups = step.groups();
    if (!PyList_Check(groups) || !PyDict_Check(state_))
      throw py::type_error("expected the optimizer's param_groups and state");
    check_hooks(step.hooks);
    updates_.reserve(network.operands.size());
    try {
      for (Py_ssize_t g = 0; g < PyList_GET_SIZE(groups); ++g) read(PyList_GET_ITEM(groups, g));
    } catch (...) {
      withdraw();
      throw;
    }
  }

  ParameterUpdates& updates() { return updates_; }

  // What so many steps leave in the state beside the tensors they have written. It runs no Python,
  // in which an interrupt would be raised when the parameters are new and their state is old.
  void finish(int64_t steps) {
    if (steps == 0) return withdraw();
    for (const Pending& pending : pending_) {
      for (const auto& [key, value] : pending.entries) {
        if (PyDict_SetItem(pending.state.ptr(), key, value.ptr()) != 0)
          throw py::error_already_set();
      }
    }
    for (const ParameterUpdate& one : updates_) {
      for (int i = 0; i < kMostScalars; ++i) {
        if (one.scalars[i].defined()) write(one.scalars[i], one.update.scalars[i]);
      }
    }
  }

 private:
  // What a parameter's state has still to be given.
  struct Pending {
    py::object parameter, state;
    bool fresh = false;  // the optimizer had no state of the parameter
    std::vector<std::pair<PyObject*, py::object>> entries;
  };

  static void write(const at::Tensor& scalar, double value) {
    if (scalar.scalar_type() == at::kFloat) {
      *scalar.mutable_data_ptr<float>() = static_cast<float>(value);
    } else {
      *scalar.mutable_data_ptr<double>() = value;
    }
    scalar.unsafeGetTensorImpl()->bump_version();
  }

  // Takes back what find_state() has put into the state, when no step was made.
  void withdraw() {
    for (const Pending& pending : pending_) {
      if (pending.fresh && PyDict_DelItem(state_, pending.parameter.ptr()) != 0)
        throw py::error_already_set();
    }
  }

  // dicts: a module's for the model and for the loss, then the optimizer's.
  static void check_hooks(PyObject* dicts) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dicts); ++i) {
      if (is_empty_dict(PyTuple_GET_ITEM(dicts, i))) continue;
      const auto of_a_module = static_cast<Py_ssize_t>(known().hooks.size());
      refuse(std::string(i < of_a_module       ? "the model has a hook"
                         : i < 2 * of_a_module ? "the loss has a hook"
                                               : "the optimizer has a step hook") +
             ". Remove it, or use the model's own forward and backward");
    }
  }

  static at::Tensor tensor(PyObject* dict, PyObject* key) {
    PyObject* object = find(dict, key);
    if (!object || !THPVariable_Check(object))
      refuse("expected the tensor " + text(key) + " in the optimizer's state");
    return THPVariable_Unpack(object);
  }

  // A parameter's state, or null. It mostly comes after the one asked for before; finding it by its
  // hash would run Python.
  PyObject* find_state(PyObject* parameter) {
    PyObject *key = nullptr, *value = nullptr;
    if (PyDict_Next(state_, &place_, &key, &value) && key == parameter) return value;
    place_ = 0;
    while (PyDict_Next(state_, &place_, &key, &value)) {
      if (key == parameter) return value;
    }
    place_ = 0;
    return nullptr;
  }

  // What a state's elements are before the first step.
  double initial(const StateInfo& info) const {
    if (!info.initial_option) return info.initial;
    return number(item(defaults_, py::str(info.initial_option).ptr(), "optimizer's defaults"));
  }

  void read(PyObject* group) {
    PyObject* parameters = item(group, keys().params, kGroup);
    if (!PyList_Check(parameters)) throw py::type_error("expected a list of parameters");
    Update update;
    update.optimizer = kind_;
    double* next = update.options;
    for (size_t i = 0; i < keys_.options.size(); ++i)
      read_option(group, keys_.options[i], info_.options[i], kGroup, next);
    update.maximize = flag(group, keys().maximize);
    if (flag(group, keys().differentiable) || flag(group, keys().capturable))
      refuse("expected an optimizer that is neither differentiable nor capturable");
    const bool fused = flag(group, keys().fused);
    for (Py_ssize_t p = 0; p < PyList_GET_SIZE(parameters); ++p)
      read(PyList_GET_ITEM(parameters, p), update, fused);
  }

  // What runs when a gradient is accumulated: torch.nn.parallel.DistributedDataParallel's, which
  // would add it to the other replicas'.
  static bool has_accumulator_hook(const at::Tensor& parameter) {
    const auto accumulator = torch::autograd::impl::try_get_grad_accumulator(parameter);
    return accumulator && !(accumulator->pre_hooks().empty() && accumulator->post_hooks().empty());
  }

  // Once there was a hook, autograd keeps a place for hooks even where none is left.
  static bool has_hook(PyObject* object, const at::Tensor& parameter) {
    if (torch::autograd::impl::hooks(parameter).empty() &&
        !torch::autograd::impl::post_acc_grad_hooks(parameter))
      return false;
    for (const char* name : {"_backward_hooks", "_post_accumulate_grad_hooks"}) {
      const auto hooks = py::reinterpret_steal<py::object>(PyObject_GetAttrString(object, name));
      if (!hooks) throw py::error_already_set();
      if (!hooks.is_none() && PyObject_IsTrue(hooks.ptr()) == 1) return true;
    }
    return false;
  }

  bool is_other(PyObject* parameter) const {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(others_); ++i) {
      if (PySequence_Fast_GET_ITEM(others_, i) == parameter) return true;
    }
    return false;
  }

  int operand(const at::Tensor& parameter) const {
    for (size_t i = 0; i < network_.operands.size(); ++i) {
      if (network_.operands[i].is_same(parameter)) return static_cast<int>(i);
    }
    refuse("the optimizer holds a parameter of shape " + c10::str(parameter.sizes()) +
           " that is not the model's (any more). Was a layer replaced, or the model moved? Make "
           "the optimizer of model.parameters(), and the TrainStep anew");
  }

  void read(PyObject* object, const Update& update, bool fused) {
    if (!THPVariable_Check(object)) throw py::type_error("expected a parameter");
    const at::Tensor& parameter = THPVariable_Unpack(object);
    if (PySequence_Fast_GET_SIZE(others_) > 0 && is_other(object)) return;
    const int place = operand(parameter);
    if (!parameter.requires_grad()) return;  // frozen: torch.optim passes it over
    if (runs_ && has_accumulator_hook(parameter))
      refuse(
          "a hook waits for the gradient of a parameter, as those of DistributedDataParallel do, "
          "and would never run: replicas would drift apart. Use the model's own forward and "
          "backward");
    if (has_hook(object, parameter))
      refuse(
          "a parameter has a hook, which there is no gradient for here. Use the model's own "
          "forward and backward");
    updates_.emplace_back();
    ParameterUpdate& one = updates_.back();
    one.operand = place;
    one.update = update;
    read_state(object, parameter, fused, one);
  }

  // The tensors of a parameter's state, or new ones as torch.optim makes them.
  void read_state(PyObject* object, const at::Tensor& parameter, bool fused, ParameterUpdate& one) {
    const auto is_kept = [&](const StateInfo& info) {
      return !info.is_kept || info.is_kept(one.update.options);
    };
    bool any = !keys_.scalars.empty();
    for (size_t i = 0; i < keys_.tensors.size(); ++i) any = any || is_kept(info_.states[i]);
    if (!any) return;
    PyObject* const state = find_state(object);
    const bool empty = !state || PyDict_Size(state) == 0;
    Pending pending;
    const auto make = [&](PyObject* key, const auto& new_tensor) {
      const c10::InferenceMode off(false);  // what is kept is no tensor of inference
      const at::Tensor value = new_tensor();
      pending.entries.emplace_back(key, py::reinterpret_steal<py::object>(THPVariable_Wrap(value)));
      return value;
    };
    for (size_t i = 0; i < keys_.scalars.size(); ++i) {
      const StateInfo& info = info_.scalars[i];
      PyObject* const key = keys_.scalars[i];
      at::Tensor& scalar = one.scalars[i];
      scalar = empty ? make(key,
                            [&] {
                              const bool wide =
                                  !fused && at::get_default_dtype_as_scalartype() == at::kDouble;
                              return at::full({}, initial(info),
                                              at::TensorOptions(wide ? at::kDouble : at::kFloat));
                            })
                     : tensor(state, key);
      TORCH_CHECK(scalar.numel() == 1 && scalar.device().is_cpu() &&
                      scalar.layout() == at::kStrided && !scalar.is_neg() &&
                      !scalar._is_zerotensor() &&
                      (scalar.scalar_type() == at::kFloat || scalar.scalar_type() == at::kDouble),
                  "fastmlp.TrainStep: expected the optimizer's ", info.key,
                  " to be one float on the CPU, got ", scalar.sizes(), " ", scalar.scalar_type(),
                  " on ", scalar.device());
      one.update.narrow[i] = scalar.scalar_type() == at::kFloat;
      one.update.scalars[i] = one.update.narrow[i]
                                  ? static_cast<double>(*scalar.const_data_ptr<float>())
                                  : *scalar.const_data_ptr<double>();
    }
    for (size_t i = 0; i < keys_.tensors.size(); ++i) {
      const StateInfo& info = info_.states[i];
      PyObject* const key = keys_.tensors[i];
      if (!is_kept(info)) continue;
      if (info.made_by_step) {
        PyObject* const found = state ? find(state, key) : nullptr;
        if (!found || found == Py_None) {
          one.update.fresh = true;
          one.states[i] = make(key, [&] { return at::empty_like(parameter); });
          continue;
        }
      }
      one.states[i] = empty && !info.made_by_step
                          ? make(key, [&] { return at::full_like(parameter, initial(info)); })
                          : tensor(state, key);
    }
    if (pending.entries.empty()) return;
    // Finding a parameter's place in the dict runs Python, so it is done before the first write.
    pending.parameter = py::reinterpret_borrow<py::object>(object);
    pending.fresh = !state;
    pending.state = state ? py::reinterpret_borrow<py::object>(state) : py::dict();
    pending_.push_back(std::move(pending));
    if (!state && PyDict_SetItem(state_, object, pending_.back().state.ptr()) != 0) {
      pending_.pop_back();
      throw py::error_already_set();
    }
    if (!state) place_ = 0;
  }

  const int kind_;
  const OptimizerInfo& info_;
  const Keys::Of& keys_;
  PyObject *const defaults_, *const state_;
  const Network& network_;
  PyObject* const others_;
  const bool runs_;
  Py_ssize_t place_ = 0;  // in the state, after the last parameter asked for
  ParameterUpdates updates_;
  std::vector<Pending> pending_;
};

LossArguments read_loss(int kind, PyObject* module) {
  LossArguments loss;
  loss.kind = kind;
  const Keys::Of& names = keys().losses[loss.kind];
  const LossInfo& info = losses()[loss.kind];
  const auto state = py::reinterpret_steal<py::object>(PyObject_GenericGetDict(module, nullptr));
  if (!state) throw py::error_already_set();
  PyObject* const reduction = find(state.ptr(), keys().reduction);
  if (!reduction || !PyUnicode_Check(reduction)) throw py::type_error("expected a loss module");
  const auto reduces_by = [&](const char* name) {
    return PyUnicode_CompareWithASCIIString(reduction, name) == 0;
  };
  if (reduces_by("sum")) {
    loss.reduction = Reduction::sum;
  } else if (reduces_by("batchmean") && info.has_batchmean) {
    loss.reduction = Reduction::batchmean;
  } else if (!reduces_by("mean")) {
    throw py::value_error(
        std::string("fastmlp.TrainStep: expected a loss with reduction ") +
        (info.has_batchmean ? "'mean', 'sum' or 'batchmean'" : "'mean' or 'sum'") + ", got '" +
        text(reduction) + "'");
  }
  double* next = loss.options;
  for (size_t i = 0; i < names.options.size(); ++i)
    read_option(state.ptr(), names.options[i], info.options[i], "loss", next);
  if (PyObject* const ignored = find(state.ptr(), keys().ignore_index)) {
    loss.ignore_index = PyLong_AsLongLong(ignored);
    if (PyErr_Occurred()) throw py::error_already_set();
  }
  PyObject* const buffers = find(state.ptr(), keys().buffers);
  for (size_t i = 0; i < names.tensors.size(); ++i) {
    if (info.operands[i].kind == LossOperandInfo::variance) continue;
    PyObject* const tensor = buffers ? find(buffers, names.tensors[i]) : nullptr;
    if (tensor && tensor != Py_None)
      loss.operands[i] =
          without_gradient(tensor, (std::string("loss's ") + info.operands[i].name).c_str());
  }
  return loss;
}

// The target, or the targets of a data set; the variances beside it become an operand of the loss.
const at::Tensor& read_target(PyObject* object, const char* name, LossArguments& loss) {
  const LossInfo& info = losses()[loss.kind];
  const int variance = variance_of(info);
  if (variance < 0) return without_gradient(object, name);
  const bool is_sequence = PyTuple_Check(object) || PyList_Check(object);
  if (!is_sequence || PySequence_Fast_GET_SIZE(object) != 2)
    throw py::type_error(std::string("fastmlp.TrainStep: expected the ") + name + " of " +
                         info.name + " to be a pair (" + name + ", var), got " +
                         (is_sequence ? std::to_string(PySequence_Fast_GET_SIZE(object)) + " items"
                                      : std::string(Py_TYPE(object)->tp_name)));
  const at::Tensor& target = without_gradient(PySequence_Fast_GET_ITEM(object, 0), name);
  PyObject* const given = PySequence_Fast_GET_ITEM(object, 1);
  loss.operands[variance] =
      PyFloat_Check(given)
          ? at::full({}, PyFloat_AS_DOUBLE(given), at::kDouble).expand(target.sizes())
          : without_gradient(given, info.operands[variance].name);
  return target;
}

// run(done), where `done` counts the finished steps even where one throws.
template <typename Run>
void run_steps(Optimizer& optimizer, const Run& run) {
  int64_t done = 0;
  std::exception_ptr failure;
  try {
    run(done);
  } catch (...) {
    failure = std::current_exception();
  }
  optimizer.finish(done);
  if (failure) std::rethrow_exception(failure);
}

PyObject* pair(PyObject* first, PyObject* second) {
  PyObject* both = PyTuple_New(2);
  PyTuple_SET_ITEM(both, 0, first);
  PyTuple_SET_ITEM(both, 1, second);
  return both;
}

PyObject* one_step(PyObject* const* args, Py_ssize_t count) {
  if (count != 3) throw py::type_error("expected (step, input, target)");
  const StepObjects step(args[0]);
  at::Tensor input;
  Network network;
  if (!step.read_network(args[1], input, network)) Py_RETURN_NONE;
  LossArguments loss = read_loss(step.loss_kind, step.loss);
  const at::Tensor& target = read_target(args[2], "target", loss);
  Optimizer optimizer(step, network);
  StepResult result;
  const Arguments arguments = network.arguments(input);
  run_steps(optimizer, [&](int64_t& done) {
    const LockReleased released(arguments);
    result = train_step(arguments, target, loss, optimizer.updates(), network.averages,
                        step.max_grad_norm);
    done = 1;
  });
  step.finish(result.correct);
  return THPVariable_Wrap(std::move(result.loss));
}

PyObject* several_steps(PyObject* const* args, Py_ssize_t count) {
  if (count != 8)
    throw py::type_error(
        "expected (step, buffer, inputs, targets, order, batch_size, scale, shift)");
  const StepObjects step(args[0]);
  at::Tensor buffer;
  Network network;
  if (!step.read_network(args[1], buffer, network)) Py_RETURN_NONE;
  LossArguments loss = read_loss(step.loss_kind, step.loss);
  const Batches batches{without_gradient(args[2], "inputs"),
                        read_target(args[3], "targets", loss),
                        without_gradient(args[4], "order"),
                        PyLong_AsLongLong(args[5]),
                        number(args[6]),
                        number(args[7]),
                        buffer};
  if (batches.size < 1) throw py::value_error("expected a batch_size of at least 1");
  const at::Tensor losses = at::empty({batches.count()}, at::kDouble);
  const at::Tensor correct = at::empty({batches.count()}, at::kLong);
  Optimizer optimizer(step, network);
  const Arguments arguments = network.arguments(buffer);
  run_steps(optimizer, [&](int64_t& done) {
    const LockReleased released(arguments, batches.count());
    train_steps(arguments, batches, loss, optimizer.updates(), network.averages, step.max_grad_norm,
                losses.mutable_data_ptr<double>(), correct.mutable_data_ptr<int64_t>(), done);
  });
  step.finish(batches.count() > 0 ? correct.const_data_ptr<int64_t>()[batches.count() - 1] : -1);
  return pair(THPVariable_Wrap(losses), THPVariable_Wrap(correct));
}

// torch's handler takes pybind11's exceptions of Python's types for RuntimeErrors.
template <typename Steps>
PyObject* with_pythons_errors(const Steps& steps, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  try {
    return steps(args, count);
  } catch (const py::builtin_exception& error) {
    error.set_error();
    throw py::error_already_set();
  }
  END_HANDLE_TH_ERRORS
}

}  // namespace

PyObject* train_step(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return with_pythons_errors(one_step, args, count);
}

PyObject* train_steps(PyObject*, PyObject* const* args, Py_ssize_t count) {
  return with_pythons_errors(several_steps, args, count);
}

PyObject* check_train_step(PyObject*, PyObject* object) {
  HANDLE_TH_ERRORS
  const StepObjects step(object);
  Network network;
  if (!step.read_network(network)) Py_RETURN_FALSE;
  {
    const at::NoGradGuard no_gradients;  // whether its tensors want any is asked in each step
    check_loss(read_loss(step.loss_kind, step.loss));
  }
  Optimizer optimizer(step, network, false);
  run_steps(optimizer, [&](int64_t&) {
    check_parameters({network.operands.data(), network.operands.size()}, optimizer.updates(),
                     network.averages);
  });
  Py_RETURN_TRUE;
  END_HANDLE_TH_ERRORS
}

void know_training(const py::list& loss_classes, const py::list& optimizer_classes) {
  const auto hold = [](const py::list& classes, std::vector<PyObject*>& held) {
    held.clear();
    for (const auto& one : classes) held.push_back(one.inc_ref().ptr());
  };
  hold(loss_classes, known_losses());
  hold(optimizer_classes, known_optimizers());
}

}  // namespace fastmlp
