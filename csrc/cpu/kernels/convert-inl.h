// Rows of a data set → the network's dtype. Included inside a target region.

// Plain C++, which the compiler turns into the vectors of the target.
template <typename T>
void convert(int64_t n, const uint8_t* from, T scale, T shift, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<T>(from[i]) * scale + shift;
}
