// A list of types: activations, losses, optimizers. Their places in it are their numbers.
#pragma once

namespace fastmlp {

template <typename... Each>
struct List {
  static constexpr int count = sizeof...(Each);
};

}  // namespace fastmlp
