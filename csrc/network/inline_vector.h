// A vector of plain values whose first N lie in the object itself: networks are small, and a call
// of one of them must not ask for memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace fastmlp {

template <typename Value, int N>
class InlineVector {
  static_assert(std::is_trivially_copyable<Value>::value);

 public:
  InlineVector() = default;
  InlineVector(const InlineVector& other) { *this = other; }
  InlineVector& operator=(const InlineVector& other) {
    if (this == &other) return *this;
    size_ = 0;
    reserve(other.size_);
    std::copy(other.begin(), other.end(), begin());
    size_ = other.size_;
    return *this;
  }

  static constexpr int64_t inline_capacity() { return N; }

  int64_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  Value* begin() { return beyond_ ? beyond_.get() : reinterpret_cast<Value*>(own_); }
  const Value* begin() const { return const_cast<InlineVector*>(this)->begin(); }
  Value* end() { return begin() + size_; }
  const Value* end() const { return begin() + size_; }
  Value& operator[](int64_t i) { return begin()[i]; }
  const Value& operator[](int64_t i) const { return begin()[i]; }
  Value& back() { return begin()[size_ - 1]; }
  const Value& back() const { return begin()[size_ - 1]; }

  void clear() { size_ = 0; }
  void push_back(const Value& value) {
    const Value copy = value;  // which may lie in this vector
    if (size_ == capacity_) reserve(2 * capacity_);
    begin()[size_++] = copy;
  }
  // New ones are Value().
  void resize(int64_t size) {
    reserve(size);
    if (size > size_) std::fill(begin() + size_, begin() + size, Value());
    size_ = size;
  }

 private:
  void reserve(int64_t capacity) {
    if (capacity <= capacity_) return;
    std::unique_ptr<Value[]> larger(new Value[capacity]);
    std::copy(begin(), end(), larger.get());
    beyond_ = std::move(larger);
    capacity_ = capacity;
  }

  int64_t size_ = 0, capacity_ = N;
  alignas(Value) unsigned char own_[N * sizeof(Value)];
  std::unique_ptr<Value[]> beyond_;
};

}  // namespace fastmlp
