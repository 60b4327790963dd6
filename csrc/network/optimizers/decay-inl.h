// What the optimizers share: weight decay, and averages that decay exponentially.

// It is added to the gradient, or shrinks the parameter itself where it is "decoupled" (Loshchilov
// and Hutter 2019).
template <typename T>
struct WeightDecay {
  using V = Vec<T>;
  const bool decays, decoupled;
  const Reg<T> part, kept;

  FASTMLP_INLINE explicit WeightDecay(double decay, bool is_decoupled = false, double lr = 0)
      : decays(decay != 0),
        decoupled(is_decoupled),
        part(V::set1(T(decay))),
        kept(V::set1(T(1 - lr * decay))) {}

  FASTMLP_INLINE void operator()(Reg<T>& p, Reg<T>& g) const {
    if (!decays) return;
    if (decoupled) {
      p = V::mul(p, kept);
    } else {
      g = V::fma(p, part, g);
    }
  }
};

// Whether subnormal squares may be zero. Beside a larger eps their roots are less than half a unit
// in the last place, even in Adam's first steps, when they count thirty times.
inline bool hides_subnormals(double eps) { return eps > 0x1p-35; }

// The average of what has been, of which each step keeps a factor.
template <typename T>
struct Average {
  using V = Vec<T>;
  const bool keeps_most, flushes;
  const Reg<T> factor, rest;

  FASTMLP_INLINE Average(double kept, bool may_flush)
      : keeps_most(1 - kept < 0.5),
        flushes(may_flush),
        factor(V::set1(T(kept))),
        rest(V::set1(T(1 - kept))) {}

  // torch.lerp, whose two forms are exact at either end.
  FASTMLP_INLINE Reg<T> of(Reg<T> average, Reg<T> x) const {
    const auto result = keeps_most ? V::fma(V::sub(x, average), rest, average)
                                   : V::fma(V::sub(average, x), factor, x);
    return flushes ? without_subnormals<T>(result) : result;
  }
  FASTMLP_INLINE Reg<T> of_squares(Reg<T> average, Reg<T> x) const {
    // In torch's order: the square of a huge x may be infinite where a part of it is not.
    const auto result = V::fma(V::mul(x, rest), x, V::mul(average, factor));
    return flushes ? without_subnormals<T>(result) : result;
  }
};
