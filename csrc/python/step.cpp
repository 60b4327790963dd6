// The Python call of a training step: reads the user's module, loss options and optimizer anew each
// time, since they are the truth and may have changed.
#include "python/step.h"

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/autograd/variable.h>

#include <exception>
#include <string>
#include <vector>

#include "torch/dropout.h"
#include "python/read_network.h"
#include "torch/step.h"

namespace py = pybind11;

namespace fastmlp {
namespace {

// A key of torch.optim's dicts, made once: looking items up by C strings took a tenth of a small
// network's step.
struct Key {
  explicit Key(const char* text) : text(text), object(PyUnicode_InternFromString(text)) {}
  const char* text;
  PyObject* object;
};

struct Keys {
  Key params{"params"}, lr{"lr"}, weight_decay{"weight_decay"}, maximize{"maximize"},
      differentiable{"differentiable"}, capturable{"capturable"}, momentum{"momentum"},
      dampening{"dampening"}, nesterov{"nesterov"}, betas{"betas"}, eps{"eps"},
      decoupled_weight_decay{"decoupled_weight_decay"}, amsgrad{"amsgrad"}, fused{"fused"},
      momentum_buffer{"momentum_buffer"}, step{"step"}, exp_avg{"exp_avg"},
      exp_avg_sq{"exp_avg_sq"}, max_exp_avg_sq{"max_exp_avg_sq"};
};

const Keys& keys() {
  static const Keys instance;
  return instance;
}

// A borrowed item of a dict, or null.
PyObject* find(PyObject* dict, const Key& key) {
  PyObject* value = PyDict_GetItemWithError(dict, key.object);
  if (!value && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

PyObject* item(PyObject* dict, const Key& key) {
  PyObject* value = find(dict, key);
  if (!value)
    throw py::key_error(std::string("the optimizer's parameter group has no ") + key.text);
  return value;
}

double number(PyObject* object) {
  const double value = PyFloat_AsDouble(object);  // of a 0-dimensional tensor, too
  if (value == -1.0 && PyErr_Occurred()) throw py::error_already_set();
  return value;
}

double option(PyObject* group, const Key& key) { return number(item(group, key)); }

bool flag(PyObject* group, const Key& key) {
  PyObject* value = find(group, key);
  return value && PyObject_IsTrue(value) == 1;
}

[[noreturn]] void refuse(const std::string& what) {
  throw std::runtime_error("fastmlp.TrainStep: " + what);
}

// What the kinds of optimizers are called in train_step.py.
enum Kind { kSgd, kAdam, kAdamW };

class Optimizer {
 public:
  // kind, param_groups, state, dicts of hooks that have to be empty
  Optimizer(PyObject* description, const Network& network)
      : kind_(static_cast<int>(PyLong_AsLong(PyTuple_GET_ITEM(description, 0)))),
        state_(PyTuple_GET_ITEM(description, 2)),
        network_(network) {
    PyObject* groups = PyTuple_GET_ITEM(description, 1);
    if (!PyList_Check(groups) || !PyDict_Check(state_))
      throw py::type_error("expected the optimizer's param_groups and state");
    check_hooks(PyTuple_GET_ITEM(description, 3));
    try {
      for (Py_ssize_t g = 0; g < PyList_GET_SIZE(groups); ++g) read(PyList_GET_ITEM(groups, g));
    } catch (...) {
      withdraw();
      throw;
    }
  }

  std::vector<ParameterUpdate>& updates() { return updates_; }

  // What so many steps leave in the state beside the tensors they have written. It runs no Python,
  // in which an interrupt would be raised when the parameters are new and their state is old.
  void finish(int64_t steps) {
    if (steps == 0) return withdraw();
    for (const Pending& pending : pending_) {
      for (const auto& [key, value] : pending.entries) {
        if (PyDict_SetItem(pending.state.ptr(), key, value.ptr()) != 0)
          throw py::error_already_set();
      }
      if (pending.step.defined()) {
        if (pending.step.scalar_type() == at::kFloat) {
          *pending.step.mutable_data_ptr<float>() =
              static_cast<float>(pending.count + static_cast<double>(steps));
        } else {
          *pending.step.mutable_data_ptr<double>() = pending.count + static_cast<double>(steps);
        }
        pending.step.unsafeGetTensorImpl()->bump_version();
      }
    }
  }

 private:
  struct Pending {
    py::object parameter, state;
    bool fresh = false;  // the optimizer had no state of the parameter
    std::vector<std::pair<PyObject*, py::object>> entries;  // still to be put into it
    at::Tensor step;
    double count = 0;  // steps before these

    at::Tensor add(const Key& key, at::Tensor value) {
      entries.emplace_back(key.object, py::reinterpret_steal<py::object>(THPVariable_Wrap(value)));
      return value;
    }
  };

  // Takes back what state_of() has put into the state, when no step was made.
  void withdraw() {
    for (const Pending& pending : pending_) {
      if (pending.fresh && PyDict_DelItem(state_, pending.parameter.ptr()) != 0)
        throw py::error_already_set();
    }
  }

  static void check_hooks(PyObject* dicts) {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(dicts); ++i) {
      if (!is_empty_dict(PyTuple_GET_ITEM(dicts, i)))
        refuse(
            "the model, the loss or the optimizer has a hook. Remove it, or use the model's own "
            "forward and backward");
    }
  }

  static at::Tensor tensor(PyObject* dict, const Key& key) {
    PyObject* object = find(dict, key);
    if (!object || !THPVariable_Check(object))
      refuse(std::string("expected the tensor ") + key.text + " in the optimizer's state");
    return THPVariable_Unpack(object);
  }

  // The parameter's state, or a new one, empty like those that torch.optim leaves where it has
  // looked: finding a parameter's place in the dict runs Python, so it is done before the first
  // write.
  Pending state_of(PyObject* parameter) {
    Pending pending;
    pending.parameter = py::reinterpret_borrow<py::object>(parameter);
    PyObject* found = PyDict_GetItemWithError(state_, parameter);
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    pending.fresh = !found;
    pending.state = found ? py::reinterpret_borrow<py::object>(found) : py::dict();
    if (!found && PyDict_SetItem(state_, parameter, pending.state.ptr()) != 0)
      throw py::error_already_set();
    return pending;
  }

  void read(PyObject* group) {
    PyObject* parameters = item(group, keys().params);
    if (!PyList_Check(parameters)) throw py::type_error("expected a list of parameters");
    Update<double> options;
    bool amsgrad = false, fused = false;
    options.kind = kind_ == kSgd ? OptimizerKind::sgd : OptimizerKind::adam;
    options.lr = option(group, keys().lr);
    options.weight_decay = option(group, keys().weight_decay);
    options.maximize = flag(group, keys().maximize);
    if (flag(group, keys().differentiable) || flag(group, keys().capturable))
      refuse("expected an optimizer that is neither differentiable nor capturable");
    if (kind_ == kSgd) {
      options.momentum_factor = option(group, keys().momentum);
      options.dampening = option(group, keys().dampening);
      options.nesterov = flag(group, keys().nesterov);
    } else {
      PyObject* betas = item(group, keys().betas);
      if (!PySequence_Check(betas) || PySequence_Size(betas) != 2)
        throw py::type_error("expected two betas");
      options.beta1 = number(py::reinterpret_steal<py::object>(PySequence_GetItem(betas, 0)).ptr());
      options.beta2 = number(py::reinterpret_steal<py::object>(PySequence_GetItem(betas, 1)).ptr());
      options.eps = option(group, keys().eps);
      options.decoupled = kind_ == kAdamW || flag(group, keys().decoupled_weight_decay);
      amsgrad = flag(group, keys().amsgrad);
      fused = flag(group, keys().fused);
    }
    for (Py_ssize_t p = 0; p < PyList_GET_SIZE(parameters); ++p)
      read(PyList_GET_ITEM(parameters, p), options, amsgrad, fused);
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

  size_t operand(const at::Tensor& parameter) const {
    const size_t layers = network_.weights.size();
    for (size_t l = 0; l < layers; ++l) {
      if (network_.weights[l].is_same(parameter)) return l;
      if (network_.biases[l] && network_.biases[l]->is_same(parameter)) return layers + l;
    }
    refuse(
        "the optimizer holds a parameter that is not the model's (any more). Was a layer replaced, "
        "or the model moved? Make the optimizer and the TrainStep anew");
  }

  void read(PyObject* object, const Update<double>& options, bool amsgrad, bool fused) {
    if (!THPVariable_Check(object)) throw py::type_error("expected a parameter");
    const at::Tensor& parameter = THPVariable_Unpack(object);
    ParameterUpdate update;
    update.operand = operand(parameter);
    if (!parameter.requires_grad()) return;  // frozen: torch.optim passes it over
    if (has_accumulator_hook(parameter))
      refuse(
          "a hook waits for the gradient of a parameter, as those of DistributedDataParallel do, "
          "and would never run: replicas would drift apart. Use the model's own forward and "
          "backward");
    if (has_hook(object, parameter))
      refuse(
          "a parameter has a hook, which there is no gradient for here. Use the model's own "
          "forward and backward");
    update.options = options;
    if (kind_ == kSgd) {
      if (options.momentum_factor != 0) momentum(object, parameter, update);
    } else {
      moments(object, parameter, update, amsgrad, fused);
    }
    updates_.push_back(std::move(update));
  }

  void momentum(PyObject* object, const at::Tensor& parameter, ParameterUpdate& update) {
    Pending pending = state_of(object);
    PyObject* buffer = find(pending.state.ptr(), keys().momentum_buffer);
    update.options.first = !buffer || buffer == Py_None;
    if (!update.options.first) {
      update.momentum = tensor(pending.state.ptr(), keys().momentum_buffer);
      return;
    }
    const c10::InferenceMode off(false);  // what is kept is no tensor of inference
    update.momentum = pending.add(keys().momentum_buffer, at::empty_like(parameter));
    pending_.push_back(std::move(pending));
  }

  void moments(PyObject* object, const at::Tensor& parameter, ParameterUpdate& update, bool amsgrad,
               bool fused) {
    Pending pending = state_of(object);
    PyObject* const dict = pending.state.ptr();
    const bool empty = PyDict_Size(dict) == 0;
    // As torch.optim makes them.
    const auto entry = [&](const Key& key, const auto& make) {
      if (!empty) return tensor(dict, key);
      const c10::InferenceMode off(false);
      return pending.add(key, make());
    };
    const auto moment = [&](const Key& key) {
      return entry(key, [&] { return at::zeros_like(parameter); });
    };
    const at::Tensor step = entry(keys().step, [&] {
      const bool wide = !fused && at::get_default_dtype_as_scalartype() == at::kDouble;
      return at::zeros({}, at::TensorOptions(wide ? at::kDouble : at::kFloat));
    });
    TORCH_CHECK(step.numel() == 1 && step.device().is_cpu() && step.layout() == at::kStrided &&
                    !step.is_neg() && !step._is_zerotensor() &&
                    (step.scalar_type() == at::kFloat || step.scalar_type() == at::kDouble),
                "fastmlp.TrainStep: expected the optimizer's step to be one float on the CPU, got ",
                step.sizes(), " ", step.scalar_type(), " on ", step.device());
    pending.step = step;
    pending.count = step.scalar_type() == at::kFloat ? *step.const_data_ptr<float>()
                                                     : *step.const_data_ptr<double>();
    update.options.step = pending.count + 1;
    update.step = step;
    update.momentum = moment(keys().exp_avg);
    update.square = moment(keys().exp_avg_sq);
    if (amsgrad) update.square_max = moment(keys().max_exp_avg_sq);
    pending_.push_back(std::move(pending));
  }

  const int kind_;
  PyObject* const state_;
  const Network& network_;
  std::vector<ParameterUpdate> updates_;
  std::vector<Pending> pending_;
};

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

// kind, mean, ignore_index, label_smoothing, weight, pos_weight
LossOptions read_loss(PyObject* description) {
  LossOptions loss;
  loss.kind = static_cast<LossKind>(PyLong_AsLong(PyTuple_GET_ITEM(description, 0)));
  loss.mean = PyObject_IsTrue(PyTuple_GET_ITEM(description, 1)) == 1;
  loss.ignore_index = PyLong_AsLongLong(PyTuple_GET_ITEM(description, 2));
  loss.label_smoothing = number(PyTuple_GET_ITEM(description, 3));
  PyObject* weight = PyTuple_GET_ITEM(description, 4);
  if (weight != Py_None) loss.weight = without_gradient(weight, "loss's weight");
  PyObject* positive = PyTuple_GET_ITEM(description, 5);
  if (positive != Py_None) loss.positive_weight = without_gradient(positive, "loss's pos_weight");
  if (PyErr_Occurred()) throw py::error_already_set();
  return loss;
}

// The network of modules or of lists beside the input; false where only Python can read it.
bool read_network(PyObject* object, PyObject* input_object, const at::Tensor*& input,
                  Network& network) {
  if (const char* reason = mode_in_the_way()) refuse(std::string("cannot run while ") + reason);
  if (const char* reason = operand_in_the_way(input_object, input))
    refuse(std::string("the input is ") + reason);
  if (input->dim() == 0) refuse("the input has no dimensions");
  without_gradient(input_object, "input");
  if (PyDict_Check(object)) {
    const bool found = recognise(object, *input, network);
    if (!found && PyErr_Occurred()) throw py::error_already_set();
    return found;
  }
  if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) != kLists)
    throw py::type_error("expected modules or the lists of a network");
  PyObject* lists[1 + kLists] = {nullptr};
  for (int i = 0; i < kLists; ++i) lists[i + 1] = PyTuple_GET_ITEM(object, i);
  const std::string reason = read(lists, *input, network);
  if (!reason.empty()) refuse(reason);
  return true;
}

void check_tuples(PyObject* loss, PyObject* optimizer) {
  if (!PyTuple_Check(loss) || PyTuple_GET_SIZE(loss) != 6 || !PyTuple_Check(optimizer) ||
      PyTuple_GET_SIZE(optimizer) != 4)
    throw py::type_error("expected the tuples of a loss and of an optimizer");
}

double norm_argument(PyObject* object) { return object == Py_None ? 0 : number(object); }

// run(done) without the interpreter's lock; `done` counts the finished steps even where one throws.
template <typename Run>
void run_steps(Optimizer& optimizer, const Run& run) {
  int64_t done = 0;
  std::exception_ptr failure;
  {
    const py::gil_scoped_release release;
    try {
      run(done);
    } catch (...) {
      failure = std::current_exception();
    }
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

}  // namespace

PyObject* train_step(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 6)
    throw py::type_error("expected (network, input, target, loss, optimizer, max_grad_norm)");
  check_tuples(args[3], args[4]);
  const at::Tensor& target = without_gradient(args[2], "target");
  const at::Tensor* input = nullptr;
  Network network;
  if (!read_network(args[0], args[1], input, network)) Py_RETURN_NONE;
  const LossOptions loss = read_loss(args[3]);
  Optimizer optimizer(args[4], network);
  const double max_grad_norm = norm_argument(args[5]);
  StepResult result;
  run_steps(optimizer, [&](int64_t& done) {
    Arguments arguments = network.arguments(*input);
    draw_noise(arguments, network.dropouts);
    result = train_step(arguments, target, loss, optimizer.updates(), max_grad_norm);
    done = 1;
  });
  return pair(THPVariable_Wrap(std::move(result.loss)), PyLong_FromLongLong(result.correct));
  END_HANDLE_TH_ERRORS
}

PyObject* train_steps(PyObject*, PyObject* const* args, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 11)
    throw py::type_error(
        "expected (network, buffer, inputs, targets, order, batch_size, scale, shift, loss, "
        "optimizer, max_grad_norm)");
  check_tuples(args[8], args[9]);
  const at::Tensor* buffer = nullptr;
  Network network;
  if (!read_network(args[0], args[1], buffer, network)) Py_RETURN_NONE;
  const Batches batches{without_gradient(args[2], "inputs"),
                        without_gradient(args[3], "targets"),
                        without_gradient(args[4], "order"),
                        PyLong_AsLongLong(args[5]),
                        number(args[6]),
                        number(args[7]),
                        *buffer};
  const LossOptions loss = read_loss(args[8]);
  Optimizer optimizer(args[9], network);
  const double max_grad_norm = norm_argument(args[10]);
  if (batches.size < 1) throw py::value_error("expected a batch_size of at least 1");
  const at::Tensor losses = at::empty({batches.count()}, at::kDouble);
  const at::Tensor correct = at::empty({batches.count()}, at::kLong);
  run_steps(optimizer, [&](int64_t& done) {
    train_steps(network.arguments(*buffer), network.dropouts, batches, loss, optimizer.updates(),
                max_grad_norm, losses.mutable_data_ptr<double>(),
                correct.mutable_data_ptr<int64_t>(), done);
  });
  return pair(THPVariable_Wrap(losses), THPVariable_Wrap(correct));
  END_HANDLE_TH_ERRORS
}

}  // namespace fastmlp
