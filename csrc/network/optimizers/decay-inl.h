// What the optimizers share: weight decay, averages that decay exponentially, and how a step of
// Adam and its kin begins.

// It is added to the gradient, or shrinks the parameter itself where it is "decoupled" (Loshchilov
// and Hutter 2019).
template <typename T>
struct WeightDecay {
  using V = Vec<T>;
  const bool decays, decoupled;
  const Reg<T> part, kept;

  // usual: the caller knows, and tells the compiler, that no decay is part of the gradient.
  FASTMLP_INLINE explicit WeightDecay(double decay, bool is_decoupled = false, double lr = 0,
                                      bool usual = false)
      : decays(usual || decay != 0),
        decoupled(usual || is_decoupled),
        part(V::set1(T(decay))),
        kept(V::set1(T(decay == 0 ? 1 : 1 - lr * decay))) {}  // lr may be infinite

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
inline bool is_most(double kept) { return 1 - kept < 0.5; }

// The average of what has been, of which each step keeps a factor.
template <typename T>
struct Average {
  using V = Vec<T>;
  const bool keeps_most, flushes;
  const Reg<T> factor, rest;

  FASTMLP_INLINE Average(double kept, bool may_flush, bool usual = false)
      : keeps_most(usual || is_most(kept)),
        flushes(usual || may_flush),
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

// What Adam, NAdam and RAdam share: their first options and states, and the averages of gradients
// and of squares.
struct AdamsKin {
  enum Option { kLr, kBeta1, kBeta2, kEps, kWeightDecay, kFirstOwn };
  enum State { kMean, kSquare };

  template <typename T>
  struct Moments {
    Reg<T> mean, square;
  };
  template <typename T>
  struct Averages {
    const WeightDecay<T> decay;
    const Average<T> mean, square;

    FASTMLP_INLINE Averages(const double* o, bool decoupled, bool usual = false)
        : decay(o[kWeightDecay], decoupled, o[kLr], usual),
          mean(o[kBeta1], hides_subnormals(o[kEps]), usual),
          square(o[kBeta2], hides_subnormals(o[kEps]), usual) {}
    // Whether `usual` changes nothing. Of squares nobody asks how much is kept.
    static bool are_usual(const double* o, bool decoupled) {
      return (decoupled || o[kWeightDecay] == 0) && is_most(o[kBeta1]) && hides_subnormals(o[kEps]);
    }

    FASTMLP_INLINE Moments<T> next(Reg<T>& p, Reg<T>& g, Reg<T>* states) const {
      decay(p, g);
      states[kMean] = mean.of(states[kMean], g);
      states[kSquare] = square.of_squares(states[kSquare], g);
      return {states[kMean], states[kSquare]};
    }
  };
};
