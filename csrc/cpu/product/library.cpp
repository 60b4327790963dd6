#include "cpu/product/library.h"

#include <ATen/ops/add_cpu_dispatch.h>
#include <ATen/ops/addmm_cpu_dispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm_cpu_dispatch.h>

#include <atomic>

namespace fastmlp::cpu {

namespace {

template <typename T>
at::Tensor view(const T* data, int64_t rows, int64_t columns, Strides strides) {
  return at::from_blob(const_cast<T*>(data), {rows, columns},
                       {strides.row_stride, strides.col_stride},
                       at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
}

std::atomic<bool> allowed{true};

}  // namespace

bool library_allowed() { return allowed.load(std::memory_order_relaxed); }
void allow_library(bool on) { allowed.store(on, std::memory_order_relaxed); }

// torch's kernels themselves: no mode, cast or derivative of the caller's comes between.
template <typename T>
void multiply_by_library(const ProductShape& shape, const ProductMemory<T>& memory, bool adds) {
  const at::Tensor a = view(memory.a, shape.m, shape.k, shape.a),
                   b = view(memory.b, shape.k, shape.n, shape.b);
  at::Tensor c = view(memory.c, shape.m, shape.n, {shape.n, 1});
  if (adds && memory.scale == 0) {
    // A learning rate of zero. The library does not even look at a and b then, where NaN stays NaN.
    at::cpu::add_out(c, c, at::cpu::mm(a, b), 0);
  } else if (adds) {
    at::cpu::addmm_out(c, c, a, b, 1, memory.scale);
  } else {
    at::cpu::mm_out(c, a, b);
  }
}

template void multiply_by_library(const ProductShape&, const ProductMemory<float>&, bool);
template void multiply_by_library(const ProductShape&, const ProductMemory<double>&, bool);

}  // namespace fastmlp::cpu
