// What a thread has set for its floating-point arithmetic: how it rounds, and whether subnormal
// numbers count as zero (torch.set_flush_denormal).
#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#elif defined(__aarch64__)
#include <cstdint>
#else
#include <cfenv>
#endif

namespace fastmlp::cpu {

class FloatState {
 public:
  FloatState(const FloatState&) = default;
  static FloatState of_this_thread() { return FloatState(); }

  inline void set() const;  // as this thread's
  // Whether it is what a thread begins with: rounding to nearest, subnormal numbers as they are.
  inline bool is_usual() const;

 private:
#if defined(__x86_64__)
  static constexpr unsigned kDenormalsAreZero = 0x40;
  FloatState() : state_(_mm_getcsr()) {}
  unsigned state_;
#elif defined(__aarch64__)
  FloatState() { asm volatile("mrs %0, fpcr" : "=r"(state_)); }
  uint64_t state_;
#else
  FloatState() { std::fegetenv(&state_); }
  std::fenv_t state_;
#endif
};

void FloatState::set() const {
#if defined(__x86_64__)
  _mm_setcsr(state_);
#elif defined(__aarch64__)
  asm volatile("msr fpcr, %0" : : "r"(state_));
#else
  std::fesetenv(&state_);
#endif
}

bool FloatState::is_usual() const {
#if defined(__x86_64__)
  return (state_ & (_MM_ROUND_MASK | _MM_FLUSH_ZERO_MASK | kDenormalsAreZero)) == 0;
#elif defined(__aarch64__)
  return (state_ & ((3u << 22) | (1u << 24))) == 0;
#else
  return std::fegetround() == FE_TONEAREST;
#endif
}

// This thread computes in another's state for the life of the object.
class BorrowedFloatState {
 public:
  explicit BorrowedFloatState(const FloatState& state) : own_(FloatState::of_this_thread()) {
    state.set();
  }
  ~BorrowedFloatState() { own_.set(); }
  BorrowedFloatState(const BorrowedFloatState&) = delete;
  BorrowedFloatState& operator=(const BorrowedFloatState&) = delete;

 private:
  const FloatState own_;
};

}  // namespace fastmlp::cpu
