"""What a forward does, by its source: can it be read once and run anew, and on what does it hang?

torch.fx sees the operations on stand-ins for tensors, and nothing else: no writes, no other
objects, no modes, no branches. So only a part of Python is taken, in which there is nothing else:
assignments to names, `if` and `for` over what is known, calls of modules, of pure functions and
methods of torch, and of methods and functions of the same kind. Each value from outside that is
read on the way becomes a term of one expression, which tells whether all is as it was.
"""

from __future__ import annotations

import ast
import dis
import inspect
import math
import textwrap
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastmlp import _activations


class Untraceable(Exception):
    """Why a forward stays as it is."""


# Of torch, what neither writes nor asks anything but its arguments; dropout alone draws numbers.
_NAMES = """
    abs add addmm amax amin argmax bmm chunk clamp clone contiguous cos cumsum detach dim div
    double erf exp expand expand_as expm1 flatten float floor gather index_select log log1p
    log_softmax logsumexp masked_fill matmul max maximum mean min minimum mm mul narrow neg norm
    permute pow prod relu repeat reshape round rsqrt select sigmoid sign sin size softmax split
    sqrt square squeeze std sub sum t tanh to transpose type_as unbind unflatten unsqueeze var
    view
"""
_METHODS = frozenset(_NAMES.split())
_ATTRIBUTES = frozenset(("T", "device", "dtype", "mT", "ndim", "shape"))
_TORCH = _METHODS | {"cat", "concat", "einsum", "stack", "where"}
_FUNCTIONAL = frozenset(
    {"dropout", "glu", "layer_norm", "linear", "log_softmax", "logsigmoid", "normalize", "softmax"}
    | {"softplus", "softsign", "tanhshrink", "rms_norm", "embedding", "one_hot", "pad", "gelu"}
    | {name for one in _activations.ALL for name in (one.name, one.op)}
)
_FUNCTIONS = {
    getattr(space, name)
    for space, names in ((torch, _TORCH), (F, _FUNCTIONAL))
    for name in names
    if callable(getattr(space, name, None))
} | {value for value in vars(math).values() if callable(value)}
_MODULES = (torch, nn, F, math)
_BUILTINS: dict[str, Any] = {
    one.__name__: one
    for one in (enumerate, float, int, isinstance, len, list, range, reversed, tuple, zip)
}
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_UNKNOWN = object()  # a value that only a call will tell
_MISSING = object()


class Dependencies:
    """Checks forwards, and collects the terms of what they depend on."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"missing": _MISSING}
        self.terms: dict[str, None] = {}
        self.checked: set[tuple[int, types.FunctionType]] = set()
        self._places: dict[int, str] = {}

    def holds(self) -> Callable[[], bool]:
        """Whether all is as it was, as a function."""
        exec(f"def holds(): return {' and '.join(self.terms) or 'True'}", self.names)
        return self.names["holds"]  # type: ignore[no-any-return]

    def name(self, value: Any) -> str:
        """A name of an object in the terms."""
        if id(value) not in self._places:
            self._places[id(value)] = f"v{len(self.names)}"
            self.names[self._places[id(value)]] = value  # and so it stays alive
        return self._places[id(value)]

    def add(self, term: str) -> None:
        self.terms[term] = None

    def same(self, found: str, value: Any) -> None:
        """That what an expression finds is a value; lists, dicts and records by what they hold."""
        if isinstance(value, Tensor):
            self.add(f"{found} is not None")  # the graph asks for it by its name
        elif isinstance(value, (int, float, complex, str, bytes, list, dict, tuple, set)):
            self.add(f"{found} == {self.name(_copy(value))}")
        else:
            self.add(f"{found} is {self.name(value)}")
        if _is_record(value):
            self.add(f"vars({self.name(value)}) == {self.name(_copy(vars(value)))}")

    def hold_module(self, module: nn.Module) -> None:
        """That a module has the same modules and the same mode."""
        values = module.__dict__
        self.add(f"{self.name(values)}['training'] is {values['training']}")
        children = self.name(values["_modules"])
        self.add(f"tuple({children}.values()) == {self.name(tuple(values['_modules'].values()))}")
        self.add(f"tuple({children}) == {self.name(tuple(values['_modules']))}")

    def check(self, function: Any, module: nn.Module | None, base: type | None) -> None:
        """Raises Untraceable where a function is more than can be read.

        Args:
            module: whose method it is; None: of no module.
            base: the module's class.
        """
        if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
            raise Untraceable("its forward calls what is no plain function")
        if (id(module), function) in self.checked:
            return
        self.checked.add((id(module), function))
        _Function(self, function, module, base).check()


class _Function:
    """One function or method."""

    def __init__(
        self,
        all: Dependencies,
        function: types.FunctionType,
        module: nn.Module | None,
        base: type | None,
    ) -> None:
        self.all, self.function, self.module, self.base = all, function, module, base
        code = function.__code__
        self.cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        self.locals = set(code.co_varnames)
        arguments = code.co_varnames[: code.co_argcount]
        self.self = arguments[0] if module is not None and arguments else None

    def refuse(self, what: str) -> Untraceable:
        return Untraceable(f"its forward {what}")

    def check(self) -> None:
        try:
            text = textwrap.dedent(inspect.getsource(self.function))
            tree = ast.parse(text).body[0]
        except (OSError, TypeError, SyntaxError, IndexError):
            raise self.refuse("has no source that can be read") from None
        if not isinstance(tree, ast.FunctionDef) or tree.name != self.function.__name__:
            raise self.refuse("is no plain function")
        if not _is_source(text, self.function.__code__):
            raise self.refuse("has become another than its source")
        if any(not isinstance(d, ast.Name) or d.id != "property" for d in tree.decorator_list):
            raise self.refuse("is decorated")
        if tree.args.vararg or tree.args.kwarg:
            raise self.refuse("takes any number of arguments")
        here = self.all.name(self.function)
        for name in ("__defaults__", "__kwdefaults__"):
            if given := getattr(self.function, name):
                self.validate(given, "the defaults of its arguments")
                self.all.same(f"{here}.{name}", given)
        self.all.same(f"{here}.__code__", self.function.__code__)
        self.statements(tree.body)

    # Statements

    def statements(self, nodes: list[ast.stmt]) -> None:
        for node in nodes:
            self.statement(node)

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Assign():
                for one in node.targets:
                    self.target(one)
                self.expression(node.value)
            case ast.AnnAssign(value=ast.expr()):
                self.target(node.target)
                self.expression(node.value)  # type: ignore[arg-type]
            case ast.Return():
                if node.value is not None:
                    self.expression(node.value)
            case ast.Expr(value=ast.Constant()) | ast.Pass() | ast.Continue():
                pass
            case ast.If():
                self.expression(node.test)
                known = self.known(node.test)
                self.statements(node.body if known is not False else [])
                self.statements(node.orelse if known is not True else [])
            case ast.For():
                self.target(node.target)
                self.expression(node.iter)
                self.statements([*node.body, *node.orelse])
            case ast.AugAssign():
                raise self.refuse("writes a value in place (as +=)")
            case ast.With():
                raise self.refuse("enters a context")
            case ast.Expr():
                raise self.refuse("calls something whose result it does not use")
            case _:
                raise self.refuse(f"has a statement of the kind {type(node).__name__}")

    def target(self, node: ast.expr) -> None:
        if isinstance(node, (ast.Tuple, ast.List)):
            for one in node.elts:
                self.target(one)
        elif not isinstance(node, ast.Name):
            raise self.refuse("writes attributes or items")
        elif node.id == self.self:
            raise self.refuse(f"gives {node.id} another value")

    def known(self, node: ast.expr) -> bool | None:
        """Whether a condition holds, where what it depends on is known: the other branch may be of
        what is not there."""
        parts = list(ast.walk(node))
        names = {part.id for part in parts if isinstance(part, ast.Name)}
        if (names - {self.self}) & self.locals or any(isinstance(p, ast.Call) for p in parts):
            return None
        cells = {name: cell.cell_contents for name, cell in self.cells.items() if name in names}
        scope = {**self.function.__globals__, **cells}
        if self.self is not None:
            scope[self.self] = self.module
        try:
            return bool(eval(compile(ast.Expression(node), "<condition>", "eval"), scope))
        except Exception:
            return None

    # Expressions

    def expression(self, node: ast.expr) -> None:
        match node:
            case ast.Name() | ast.Attribute():
                self.value(node)
            case ast.Call():
                self.call(node)
            case ast.ListComp() | ast.GeneratorExp():
                for one in node.generators:
                    self.target(one.target)
                    targets = ast.walk(one.target)
                    self.locals |= {part.id for part in targets if isinstance(part, ast.Name)}
                    self.expression(one.iter)
                    for test in one.ifs:
                        self.expression(test)
                self.expression(node.elt)
            case ast.IfExp():
                self.expression(node.test)
                known = self.known(node.test)
                if known is not False:
                    self.expression(node.body)
                if known is not True:
                    self.expression(node.orelse)
            case (
                ast.Constant() | ast.Tuple() | ast.List() | ast.Dict() | ast.BinOp() | ast.UnaryOp()
                | ast.BoolOp() | ast.Compare() | ast.Subscript() | ast.Slice()
                | ast.JoinedStr() | ast.FormattedValue()
            ):  # fmt: skip
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr):
                        self.expression(child)
            case _:
                raise self.refuse(f"has an expression of the kind {type(node).__name__}")

    def call(self, node: ast.Call) -> None:
        for argument in node.args:
            self.expression(argument)
        for keyword in node.keywords:
            if keyword.arg is None or (keyword.arg == "out"):
                raise self.refuse("passes ** or out=")
            self.expression(keyword.value)
        function = node.func
        if self.is_super(function):
            assert isinstance(function, ast.Attribute)
            inherited = self.inherited(function.attr)
            if not str(inherited.__module__).startswith("torch."):
                self.all.check(inherited, self.module, self.base)
            return
        found = self.value(function) if isinstance(function, (ast.Name, ast.Attribute)) else None
        if found is None:
            self.expression(function)
        elif found is not _UNKNOWN:
            self.called(found)

    def is_super(self, node: ast.expr) -> bool:
        match node:
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super"), args=[])):
                return self.module is not None and "super" not in self.function.__globals__
        return False

    def inherited(self, name: str) -> Any:
        cell = self.cells.get("__class__")
        if cell is None or self.base is None:
            raise self.refuse("calls super() of no class")
        found = getattr(super(cell.cell_contents, self.module), name, None)
        function = getattr(found, "__func__", None)
        if function is None:
            raise self.refuse(f"calls super().{name}")
        parts = self.all.name(cell.cell_contents), self.all.name(self.module)
        found = f"getattr(super({', '.join(parts)}), {name!r}).__func__"
        self.all.add(f"{found} is {self.all.name(function)}")
        return function

    def called(self, found: Any) -> None:
        if isinstance(found, nn.Module) or self.is_function(found):
            return
        if isinstance(found, types.MethodType) and found.__self__ is self.module:
            return  # checked when it was found
        if isinstance(found, types.FunctionType) or found in _BUILTINS.values():
            return
        raise self.refuse(f"calls {getattr(found, '__name__', type(found).__name__)}")

    def is_function(self, found: Any) -> bool:
        try:
            return found in _FUNCTIONS
        except TypeError:  # not hashable
            return False

    def value(self, node: ast.expr) -> Any:
        """What a name, or attributes of one, are; _UNKNOWN where a call tells it."""
        if isinstance(node, ast.Name):
            return self.named(node.id)
        if isinstance(node, ast.Attribute):
            holder = self.value(node.value)
            if holder is _UNKNOWN:
                if node.attr in _METHODS or node.attr in _ATTRIBUTES or node.attr in _OF_MAPPINGS:
                    return _UNKNOWN
                raise self.refuse(f"asks a value for {node.attr}")
            return self.attribute(holder, node.attr)
        self.expression(node)
        return _UNKNOWN

    def named(self, name: str) -> Any:
        if name == self.self:
            return self.module
        if name in self.locals:
            return _UNKNOWN
        if name in self.cells:
            try:
                found = self.cells[name].cell_contents
            except ValueError:
                raise self.refuse(f"reads {name}, which has no value") from None
            place = f"{self.all.name(self.cells[name])}.cell_contents"
        elif name in self.function.__globals__:
            found = self.function.__globals__[name]
            place = f"{self.all.name(self.function.__globals__)}.get({name!r}, missing)"
        elif name in _BUILTINS:
            return _BUILTINS[name]
        else:
            raise self.refuse(f"reads {name}")
        if isinstance(found, types.ModuleType) and found not in _MODULES:
            raise self.refuse(f"reads the module {name}")
        self.validate(found, name)
        self.all.same(place, found)
        return _UNKNOWN if isinstance(found, (list, dict)) else found

    def attribute(self, holder: Any, name: str) -> Any:
        if isinstance(holder, types.ModuleType):
            found = getattr(holder, name, _MISSING)
            if isinstance(found, types.ModuleType) and found in _MODULES:
                return found
            is_known = isinstance(found, type) or type(found) in _PLAIN or self.is_function(found)
            if not is_known:
                raise self.refuse(f"uses {holder.__name__}.{name}")
            self.all.same(f"getattr({self.all.name(holder)}, {name!r}, missing)", found)
            return found
        if isinstance(holder, nn.Module):
            return self.of_module(holder, name)
        if _is_record(holder) and name in vars(holder):
            return vars(holder)[name]  # validated, and compared, as a whole
        if isinstance(holder, Tensor) and (name in _METHODS or name in _ATTRIBUTES):
            return _UNKNOWN
        raise self.refuse(f"asks a {type(holder).__name__} for {name}")

    def of_module(self, module: nn.Module, name: str) -> Any:
        values = module.__dict__
        here = self.all.name(values)
        if name in values and name not in _OWN:
            self.validate(values[name], name)
            self.all.same(f"{here}.get({name!r}, missing)", values[name])
            return _UNKNOWN if isinstance(values[name], (list, dict, tuple)) else values[name]
        found = inspect.getattr_static(type(module), name, _MISSING)
        if found is not _MISSING:
            self.all.add(f"{name!r} not in {here}")
            kind = self.all.name(type(module))
            if isinstance(module, _CONTAINERS) and name in _OF_MAPPINGS:
                self.all.hold_module(module)
                return _UNKNOWN
            if module is not self.module:
                raise self.refuse(f"asks a {type(module).__name__} for {name}")
            if isinstance(found, types.FunctionType):
                self.all.check(found, module, self.base)
                self.all.add(f"{kind}.{name} is {self.all.name(found)}")
                return types.MethodType(found, module)
            if isinstance(found, property):
                self.all.check(found.fget, module, self.base)
                self.all.add(f"getattr({kind}, {name!r}, missing) is {self.all.name(found)}")
                return _UNKNOWN
            if isinstance(found, staticmethod):
                raise self.refuse(f"calls the static method {name}")
            self.validate(found, name)
            self.all.same(f"getattr({kind}, {name!r}, missing)", found)
            return _UNKNOWN if isinstance(found, (list, dict, tuple)) else found
        for kept in ("_parameters", "_buffers", "_modules"):
            if name not in values[kept]:
                continue
            one = values[kept][name]
            place = f"{self.all.name(values[kept])}.get({name!r}, missing)"
            if isinstance(one, (nn.ParameterList, nn.ParameterDict)):
                raise self.refuse(f"reads {name}, a {type(one).__name__}")
            if isinstance(one, nn.Module):
                self.all.add(f"{place} is {self.all.name(one)}")
                if isinstance(one, _CONTAINERS):
                    self.all.hold_module(one)
            elif one is None:
                self.all.add(f"{place} is None")
            else:
                self.all.add(f"{place} is not None")
            return one
        raise self.refuse(f"reads {name}, which is not there")

    def validate(self, value: Any, name: str, depth: int = 0) -> None:
        """That a value can be compared, and that what may be called in it is known."""
        if depth > 8:
            raise self.refuse(f"reads {name}, which is too deep")
        # A number of NumPy's is a float, too, but not in the code that torch.fx writes.
        if type(value) in _PLAIN or isinstance(value, (nn.Module, Tensor, type)):
            return
        if self.is_function(value):
            return
        if isinstance(value, types.ModuleType) and value in _MODULES:
            return
        if type(value) in (list, tuple, dict, set, frozenset):
            parts = [*value, *value.values()] if isinstance(value, dict) else value
            if any(isinstance(part, Tensor) for part in parts):
                raise self.refuse(f"reads {name}, which holds tensors")
            for part in parts:
                self.validate(part, name, depth + 1)
            return
        if isinstance(value, types.FunctionType) and not hasattr(value, "__wrapped__"):
            self.all.check(value, None, None)
            return
        if depth == 0 and _is_record(value):
            for one in vars(value).values():
                self.validate(one, name, depth + 1)
            return
        raise self.refuse(f"reads {name}, a {type(value).__name__}, which may change")


def _is_source(text: str, code: types.CodeType) -> bool:
    """Whether a function's code is what its source compiles to: the file may have changed.

    What is read, written and computed, in that order. (How calls are made depends on what else is
    in the file.)
    """
    around = f"def around({', '.join(code.co_freevars)}):\n{textwrap.indent(text, ' ')}"
    found = compile(around, code.co_filename, "exec", dont_inherit=True)
    for name in ("around", code.co_name):
        inside = [one for one in found.co_consts if isinstance(one, types.CodeType)]
        found = next((one for one in inside if one.co_name == name), found)

    def parts(one: types.CodeType) -> list[str]:
        return [
            repr(step.argval)
            for step in dis.get_instructions(one)
            if step.opname.startswith(
                ("LOAD_", "STORE_", "BINARY_", "COMPARE_", "CONTAINS_", "IS_")
            )
            and not isinstance(step.argval, types.CodeType)
        ]

    return parts(found) == parts(code)


_OF_MAPPINGS = frozenset(("items", "keys", "values"))
_OWN = frozenset(("_parameters", "_buffers", "_modules"))


def _is_record(value: Any) -> bool:
    """Whether an object is no more than its attributes."""
    kind = type(value)
    return (
        type(getattr(value, "__dict__", None)) is dict
        and not isinstance(value, (type, nn.Module, Tensor, types.FunctionType, types.ModuleType))
        and not isinstance(value, (list, tuple, dict, set))
        and isinstance(kind.__getattribute__, types.WrapperDescriptorType)  # not of Python
        and not hasattr(kind, "__getattr__")
        and not kind.__module__.startswith("torch.")
        and not any(isinstance(one, property) for one in vars(kind).values())
    )


def _copy(value: Any) -> Any:
    """A value whose lists and dicts are others, down to the last."""
    if type(value) in (list, tuple, set):
        return type(value)(map(_copy, value))
    if type(value) is dict:
        return {key: _copy(one) for key, one in value.items()}
    return value
