#include "cpu/noise.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <mutex>

#include "cpu/isa/isa.h"
#include "cpu/kernels/table.h"

namespace fastmlp::cpu {
namespace {

// As many as torch's bernoulli_ would set to one become `value`, the others zero. The generator's
// mutex is the caller's.
template <typename T>
void draw(at::CPUGeneratorImpl& generator, double p, T value, int64_t n, T* out) {
  at::mt19937 engine = generator.engine();
  at::mt19937_data_pod data = engine.data();
  MersenneTwister twister;
  twister.state = data.state_.data();
  twister.next = static_cast<int>(data.next_);
  twister.unread = data.left_ - 1;
  // A uniform number of 53 bits is below p where its bits are below p · 2⁵³, which is exact.
  const auto below = static_cast<uint64_t>(std::ceil(std::ldexp(p, 53)));
  active_kernels<T>().bernoulli(twister, n, below, value, out);
  data.next_ = static_cast<uint32_t>(twister.next);
  data.left_ = twister.unread + 1;
  engine.set_data(data);
  generator.set_engine(engine);
}

// Whether torch draws in this way; a build of it may have another generator for that.
bool draws_like_torch() {
  static const bool result = [] {
    constexpr int64_t kCount = 400;  // more than one state of the generator
    constexpr double kProbability = 0.3;
    at::Generator theirs = at::detail::createCPUGenerator(1), ours = theirs.clone();
    const at::Tensor expected = at::empty({kCount}, at::kFloat).bernoulli_(kProbability, theirs);
    const at::Tensor drawn = at::empty({kCount}, at::kFloat);
    draw(*at::check_generator<at::CPUGeneratorImpl>(ours), kProbability, 1.0f, kCount,
         drawn.mutable_data_ptr<float>());
    return drawn.equal(expected) && theirs.get_state().equal(ours.get_state());
  }();
  return result;
}

}  // namespace

template <typename T>
void fill_noise(double probability, T value, int64_t elements, T* out) {
  if (probability == 0) {  // torch draws nothing then
    std::fill_n(out, elements, T(0));
    return;
  }
  if (!draws_like_torch()) {
    at::from_blob(out, {elements}, sizeof(T) == 4 ? at::kFloat : at::kDouble)
        .bernoulli_(probability)
        .mul_(static_cast<double>(value));
    return;
  }
  const at::Generator generator = at::detail::getDefaultCPUGenerator();
  auto* const implementation = at::check_generator<at::CPUGeneratorImpl>(generator);
  const std::lock_guard<std::mutex> lock(implementation->mutex_);
  draw(*implementation, probability, value, elements, out);
}

template void fill_noise(double, float, int64_t, float*);
template void fill_noise(double, double, int64_t, double*);

}  // namespace fastmlp::cpu
