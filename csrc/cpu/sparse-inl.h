// Where a matrix holds other values than one. Included inside a target region.
//
// Plain C++, which the compiler turns into the vectors of the target.

// to = from - shift.
template <typename T>
void subtract(int64_t n, const T* from, T shift, T* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i] - shift;
}

template <typename T>
int64_t list_columns(int64_t rows, int64_t n, const T* a, int64_t stride, T value, int32_t* marks,
                     int32_t* list) {
  for (int64_t j = 0; j < n; ++j) marks[j] = a[j] != value;
  for (int64_t i = 1; i < rows; ++i) {
    const T* row = a + i * stride;
    for (int64_t j = 0; j < n; ++j) marks[j] |= row[j] != value;
  }
  int64_t count = 0;
  for (int64_t j = 0; j < n; ++j) {
    list[count] = static_cast<int32_t>(j);
    count += marks[j];
  }
  return count;
}

template <typename T>
int64_t list_rows(int64_t rows, int64_t n, const T* a, int64_t stride, T value, int32_t* list) {
  int64_t count = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const T* row = a + i * stride;
    int32_t any = 0;
    for (int64_t j = 0; j < n; ++j) any |= row[j] != value;
    list[count] = static_cast<int32_t>(i);
    count += any;
  }
  return count;
}
