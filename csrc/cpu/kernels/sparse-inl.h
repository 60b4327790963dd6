// Where a matrix holds other values than one. Included inside a target region.

// Plain C++, which the compiler turns into the vectors of the target.
template <typename T>
void separate(int64_t n, const T* x, T background, uint8_t* marks, T* rest) {
  for (int64_t i = 0; i < n; ++i) marks[i] = x[i] != background;
  if (!rest) return;
  for (int64_t i = 0; i < n; ++i) rest[i] = x[i] - background;
}
