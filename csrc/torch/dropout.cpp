#include "torch/dropout.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <mutex>

#include "cpu/isa/isa.h"
#include "cpu/kernels/table.h"
#include "torch/memory.h"

namespace fastmlp {
namespace {

// As many as torch's bernoulli_ would set to one become `value`, the others zero. The generator's
// mutex is the caller's.
template <typename T>
void draw(at::CPUGeneratorImpl& generator, double p, T value, int64_t n, T* out) {
  at::mt19937 engine = generator.engine();
  at::mt19937_data_pod data = engine.data();
  cpu::MersenneTwister twister;
  twister.state = data.state_.data();
  twister.next = static_cast<int>(data.next_);
  twister.unread = data.left_ - 1;
  // A uniform number of 53 bits is below p where its bits are below p · 2⁵³, which is exact.
  const auto below = static_cast<uint64_t>(std::ceil(std::ldexp(p, 53)));
  cpu::active_kernels<T>().bernoulli(twister, n, below, value, out);
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

template <typename T>
void fill(double dropout, const at::Tensor& part) {
  const double keeps = 1 - dropout;
  if (keeps == 0) {  // torch draws nothing then
    part.zero_();
    return;
  }
  const T value = T(1) / static_cast<T>(keeps);
  if (!draws_like_torch()) {
    part.bernoulli_(keeps).mul_(value);
    return;
  }
  const at::Generator generator = at::detail::getDefaultCPUGenerator();
  auto* const implementation = at::check_generator<at::CPUGeneratorImpl>(generator);
  const std::lock_guard<std::mutex> lock(implementation->mutex_);
  draw(*implementation, keeps, value, part.numel(), part.mutable_data_ptr<T>());
}

}  // namespace

void draw_noise(Arguments& arguments, at::ArrayRef<double> dropouts) {
  const auto drops = [](double dropout) { return dropout > 0; };
  if (std::none_of(dropouts.begin(), dropouts.end(), drops)) return;
  check_without_noise(arguments);  // so that an error leaves the generator as it was
  const at::ScalarType dtype = arguments.input.scalar_type();
  int64_t elements = 0, begin = 0;
  for (size_t l = 0; l < dropouts.size(); ++l) elements += arguments.noise_elements(l);
  arguments.noise = uninitialized({elements}, dtype);
  for (size_t l = 0; l < dropouts.size(); ++l) {
    if (dropouts[l] <= 0) continue;
    const at::Tensor part = arguments.noise.narrow(0, begin, arguments.noise_elements(l));
    dtype == at::kFloat ? fill<float>(dropouts[l], part) : fill<double>(dropouts[l], part);
    begin += part.numel();
  }
}

}  // namespace fastmlp
