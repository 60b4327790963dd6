// The dtypes of the kernels.
#pragma once

#include <cstdint>

namespace fastmlp {

enum class Dtype : int64_t { float32, float64 };

inline int64_t size_of(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 8; }

// call(T()) with the type that has this dtype.
template <typename Call>
auto dispatch(Dtype dtype, const Call& call) {
  return dtype == Dtype::float32 ? call(float()) : call(double());
}

}  // namespace fastmlp
