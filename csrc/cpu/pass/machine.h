// What a plan depends on beside the network: the processor's side of it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/isa/isa.h"
#include "cpu/kernels/table.h"
#include "cpu/product/matrix.h"
#include "cpu/team.h"

namespace fastmlp::cpu {

template <typename T>
struct Machine {
  const Kernels<T>* kernels = &active_kernels<T>();
  int64_t cache_bytes = second_level_cache_bytes();
  int64_t max_threads = 1;
  bool may_use_library = false;

  Machine(int64_t threads, bool may_use_library)
      : max_threads(threads), may_use_library(may_use_library) {}
  bool operator==(const Machine& other) const {
    return kernels == other.kernels && cache_bytes == other.cache_bytes &&
           max_threads == other.max_threads && may_use_library == other.may_use_library;
  }
};

// A product's multiplications and what it costs beside them, counted in them: reading a and b, and
// writing c.
inline double product_cost(int64_t m, int64_t n, int64_t k) {
  const double rows = static_cast<double>(m), columns = static_cast<double>(n),
               depth = static_cast<double>(k);
  return rows * columns * depth + (rows + columns) * depth + 4 * rows * columns;
}

// A norm of m rows, likewise: it goes over them three times.
inline double norm_cost(int64_t m, int64_t n) {
  return 16 * static_cast<double>(m) * static_cast<double>(n);
}
// Rows between two epilogues of a norm, which find them in the first-level cache.
inline constexpr int64_t kNormRows = 8;

template <typename T>
int team_size(double cost, const Machine<T>& machine) {
  return static_cast<int>(std::clamp(cost / machine.kernels->tuning.multiplications_per_thread, 1.0,
                                     static_cast<double>(machine.max_threads)));
}

// A buffer for all members of the team and one of its own for each, of what the largest of all
// products needs.
template <typename T>
class BufferPlan {
 public:
  template <typename Product>
  void add_product(const Product& product) {
    add(product.buffer_elements());
    shared_ = std::max(shared_, aligned<T>(product.shared_elements()));
  }
  void add(int64_t elements) { own_ = std::max(own_, aligned<T>(elements)); }
  int64_t elements(int threads) const { return shared_ + own_ * threads; }
  T* shared(T* begin) const { return begin; }
  T* of(T* begin, Member member) const { return begin + shared_ + member.index * own_; }

  // The product with this buffer, in the way that the pass is shared out (stages.h).
  template <typename Stages, typename Product, typename Done>
  void compute(const Stages& stages, const Product& product, const ProductMemory<T>& memory,
               T* begin, const Done& done) const {
    if (product.is_by_library()) return product.compute_by_library(stages, memory, done);
    stages.run([&](Member member) {
      product.compute(member, memory, of(begin, member), shared(begin), done);
    });
  }

 private:
  int64_t own_ = 0, shared_ = 0;
};

}  // namespace fastmlp::cpu
