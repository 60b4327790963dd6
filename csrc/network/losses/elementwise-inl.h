// What the losses of each element alone share. Such a loss has an Element(loss), which is called
// with (z, t, operands, value, gradient) and divides the gradient by the denominator. Included
// inside a target region, after math-inl.h.

inline void prepare_elementwise(Loss& loss) {
  switch (loss.reduction) {
    case Reduction::mean:
      loss.denominator = loss.elements();
      break;
    case Reduction::batchmean:
      loss.denominator = static_cast<double>(loss.samples);
      break;
    case Reduction::sum:
      loss.denominator = 1;
  }
}
