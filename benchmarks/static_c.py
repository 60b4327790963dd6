"""Plain C whose sizes the compiler knows: no framework at all. A bound for small networks.

Compiled when a contestant is made, by the C compiler found; one thread. Weights lie as torch has
them. A layer's update follows its gradient row by row, so that no gradient is written to memory.
"""

from __future__ import annotations

import ctypes
import math
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from peers import BETAS, EPS, RATES, Problem, Results, Unsupported, named

FLAGS = ("-O3", "-march=native", "-ffast-math", "-fno-semantic-interposition", "-fPIC", "-w")
LINE = 16  # floats of a cache line, at which every array of parameters begins

FUNCTIONS = r"""
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __SSE__  // subnormal numbers count as zero, here and nowhere else in the process
#include <xmmintrin.h>
#define FLUSH const unsigned state = _mm_getcsr(); _mm_setcsr(state | 0x8040)
#define RESTORE _mm_setcsr(state)
#else
#define FLUSH
#define RESTORE
#endif

#define INLINE static inline __attribute__((always_inline))
#define ALIGNED __attribute__((aligned(64)))

static float p[COUNT] ALIGNED;  // parameters
#if ADAM
static float mean[COUNT] ALIGNED, square[COUNT] ALIGNED;
static double power1 = 1, power2 = 1;
#endif
static float rate = RATE, root = 1;

INLINE void linear(int in, int out, int relu, const float *restrict x, const float *restrict w,
                   const float *restrict b, float *restrict y) {
  for (int r = 0; r < BATCH; ++r)
    for (int o = 0; o < out; ++o) {
      float sum = 0;
      for (int i = 0; i < in; ++i) sum += x[r * in + i] * w[o * in + i];
      sum += b[o];
      y[r * out + o] = relu && sum < 0 ? 0 : sum;
    }
}

INLINE float softmax_cross_entropy(int classes, const float *restrict y, const int64_t *restrict t,
                                   float *restrict dy) {
  float loss = 0;
  for (int r = 0; r < BATCH; ++r, y += classes, dy += classes) {
    float most = y[0], sum = 0;
    for (int c = 1; c < classes; ++c) most = y[c] > most ? y[c] : most;
    for (int c = 0; c < classes; ++c) sum += dy[c] = expf(y[c] - most);
    for (int c = 0; c < classes; ++c) dy[c] *= 1 / (sum * BATCH);
    dy[t[r]] -= 1.0f / BATCH;
    loss += logf(sum) + most - y[t[r]];
  }
  return loss / BATCH;
}

// The gradient of a layer's input, which is the output h of a ReLU.
INLINE void input_gradient(int in, int out, const float *restrict dy, const float *restrict w,
                 const float *restrict h, float *restrict dx) {
  for (int r = 0; r < BATCH; ++r) {
    float row[in] ALIGNED;
    memset(row, 0, sizeof row);
    for (int o = 0; o < out; ++o)
      for (int i = 0; i < in; ++i) row[i] += dy[r * out + o] * w[o * in + i];
    for (int i = 0; i < in; ++i) dx[r * in + i] = h[r * in + i] > 0 ? row[i] : 0;
  }
}

INLINE void update(int at, float g) {
#if ADAM
  mean[at] += (1 - BETA1) * (g - mean[at]);
  square[at] += (1 - BETA2) * (g * g - square[at]);
  p[at] -= rate * mean[at] / (sqrtf(square[at]) * root + EPS);
#else
  p[at] -= rate * g;
#endif
}

INLINE void learn(int in, int out, const float *restrict x, const float *restrict dy, int w,
                  int b) {
  for (int o = 0; o < out; ++o) {
    float sum = 0;
    for (int r = 0; r < BATCH; ++r) sum += dy[r * out + o];
    update(b + o, sum);
    if (BATCH == 1) {
      for (int i = 0; i < in; ++i) update(w + o * in + i, dy[o] * x[i]);
    } else {
      float row[in] ALIGNED;
      memset(row, 0, sizeof row);
      for (int r = 0; r < BATCH; ++r)
        for (int i = 0; i < in; ++i) row[i] += dy[r * out + o] * x[r * in + i];
      for (int i = 0; i < in; ++i) update(w + o * in + i, row[i]);
    }
  }
}

float *network_parameters(void) { return p; }
"""

# The steps in a row read a batch of one where it lies.
ENTRIES = r"""
float network_step(const float *x, const int64_t *t) {
  FLUSH;
  const float loss = step(x, t);
  RESTORE;
  return loss;
}

int64_t network_steps(const float *x, const int64_t *t, const int64_t *rows, int64_t count) {
  static float inputs[BATCH * INPUT] ALIGNED;
  static int64_t targets[BATCH];
  int64_t done = 0;
  FLUSH;
  for (; done < count; ++done, rows += BATCH) {
    if (BATCH == 1) {
      step(x + *rows * INPUT, t + *rows);
      continue;
    }
    for (int r = 0; r < BATCH; ++r) {
      memcpy(inputs + r * INPUT, x + rows[r] * INPUT, sizeof(float) * INPUT);
      targets[r] = t[rows[r]];
    }
    step(inputs, targets);
  }
  RESTORE;
  return done;
}
"""


def offsets(sizes: tuple[int, ...]) -> list[int]:
    """Where weight and bias of each layer in turn begin, and where the last ends."""
    ends = [0]
    for m, n in pairwise(sizes):
        for count in (m * n, n):
            ends.append(ends[-1] + -(-count // LINE) * LINE)
    return ends


def source(sizes: tuple[int, ...], batch: int, task: str) -> str:
    """The network, and its step with the optimizer of this task, as C."""
    layers = list(enumerate(pairwise(sizes)))
    last, at = len(layers) - 1, offsets(sizes)
    constants = {
        "BATCH": batch, "INPUT": sizes[0], "COUNT": at[-1], "ADAM": int(task == "adam"),
        "RATE": f"{RATES.get(task, 0.0)}f", "BETA1": f"{BETAS[0]}f", "BETA2": f"{BETAS[1]}f",
        "EPS": f"{EPS}f",
    }  # fmt: skip

    def input_of(i: int) -> str:
        return f"out_{i - 1}" if i else "x"

    def lines() -> Iterator[str]:
        for name, value in constants.items():
            yield f"#define {name} {value}"
        yield FUNCTIONS
        for i, (_, n) in layers:
            yield f"static float out_{i}[{batch * n}] ALIGNED, grad_{i}[{batch * n}] ALIGNED;"
        yield "const float *network_forward(const float *restrict x) {"
        for i, (m, n) in layers:
            w, b = at[2 * i : 2 * i + 2]
            yield f"  linear({m}, {n}, {int(i < last)}, {input_of(i)}, p + {w}, p + {b}, out_{i});"
        yield f"  return out_{last};\n}}"
        yield "static float step(const float *restrict x, const int64_t *restrict t) {"
        yield "  network_forward(x);"
        yield f"  float loss = softmax_cross_entropy({sizes[-1]}, out_{last}, t, grad_{last});"
        if task == "adam":
            yield f"  power1 *= {BETAS[0]};\n  power2 *= {BETAS[1]};"
            yield "  rate = RATE / (1 - power1);\n  root = 1 / sqrt(1 - power2);"
        for i, (m, n) in reversed(layers):
            w, b = at[2 * i : 2 * i + 2]
            if i:  # before its weights change
                yield f"  input_gradient({m}, {n}, grad_{i}, p + {w}, out_{i - 1}, grad_{i - 1});"
            yield f"  learn({m}, {n}, {input_of(i)}, grad_{i}, {w}, {b});"
        yield "  return loss;\n}"
        yield ENTRIES

    return "\n".join(lines())


def compiler() -> list[str]:
    """The command of the C compiler.

    Raises:
        Unsupported: there is none.
    """
    for command in filter(None, (os.environ.get("CC"), "gcc", "clang", "cc")):
        if shutil.which((words := shlex.split(command))[0]):
            return words
    raise Unsupported("no C compiler")


class Library(NamedTuple):
    """The functions of a compiled network, with the problem's parameters. Addresses are integers.

    Attributes:
        forward: of an input; returns the address of the output.
        step: of an input and its classes; returns the loss.
        steps: of all inputs and classes, rows and the number of steps; returns those done.
        views: weight and bias of each layer in turn, where they lie.
    """

    forward: ctypes._NamedFuncPointer
    step: ctypes._NamedFuncPointer
    steps: ctypes._NamedFuncPointer
    views: list[np.ndarray[Any, Any]]

    def parameters(self) -> Results:
        return named([place.copy() for place in self.views])


def view(address: int, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The floats that lie there."""
    floats = (ctypes.c_float * math.prod(shape)).from_address(address)
    return np.ctypeslib.as_array(floats).reshape(shape)


def library(problem: Problem) -> Library:
    """The problem's network, compiled.

    Raises:
        Unsupported: no compiler, or a network that is not just linear layers with ReLU.
    """
    shape = problem.shape
    if shape.options:
        raise Unsupported("plain networks only")
    with tempfile.TemporaryDirectory() as folder:
        code, object_, binary = (str(Path(folder, f"network.{end}")) for end in ("c", "o", "so"))
        Path(code).write_text(source(shape.sizes, shape.batch, problem.task), encoding="utf-8")
        # Linked with -ffast-math, it would flush subnormal numbers of the whole process.
        link = ["-shared", "-o", binary, object_, "-lm"]
        for arguments in ([*FLAGS, "-c", "-o", object_, code], link):
            done = subprocess.run([*compiler(), *arguments], capture_output=True, text=True)
            if done.returncode:
                message = done.stderr.splitlines() or ["no message"]
                raise Unsupported(next((line for line in message if "error" in line), message[-1]))
        loaded = ctypes.CDLL(binary)
    address, count = ctypes.c_void_p, ctypes.c_int64
    forward, step, steps = loaded.network_forward, loaded.network_step, loaded.network_steps
    forward.argtypes, forward.restype = [address], address
    step.argtypes, step.restype = [address, address], ctypes.c_float
    steps.argtypes, steps.restype = [address, address, address, count], count
    loaded.network_parameters.restype = address
    start, at = loaded.network_parameters(), offsets(shape.sizes)
    arrays = [array for layer in problem.parameters() for array in layer]
    views = [view(start + 4 * i, a.shape) for a, i in zip(arrays, at, strict=False)]
    for place, array in zip(views, arrays, strict=True):
        place[...] = array
    return Library(forward, step, steps, views)
