// All that is compiled for each instruction set, in an order in which each finds what it uses.
// Included inside a target region, after vec_<isa>.h.
template <typename T>
using Reg = typename Vec<T>::Reg;
#include "cpu/kernels/packing-inl.h"
#include "network/math-inl.h"
// … which the formulas are written in,
#include "network/activations-inl.h"
#include "network/losses-inl.h"
#include "network/optimizers-inl.h"
// … and these over matrices.
#include "cpu/kernels/elementwise-inl.h"
#include "cpu/kernels/training-inl.h"
// … and all else.
#include "cpu/kernels/columns-inl.h"
#include "cpu/kernels/convert-inl.h"
#include "cpu/kernels/gemm-inl.h"
#include "cpu/kernels/mersenne-inl.h"
#include "cpu/kernels/norm-inl.h"
#include "cpu/kernels/prelu-inl.h"
#include "cpu/kernels/sparse-inl.h"
#include "images/resample-inl.h"
// The table of it all.
#include "cpu/kernels/table-inl.h"
