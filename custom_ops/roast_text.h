// A message in a buffer of the caller. Freestanding: the adapters of several runtimes share it.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace roast {

// Appends text and integers, always 0-terminated, cut at the capacity.
class Text {
 public:
  Text(char* buffer, size_t capacity) : buffer_(buffer), capacity_(capacity) {
    if (capacity_ > 0) buffer_[0] = 0;
  }

  Text& operator<<(const char* text) {
    for (; *text != 0; ++text) put(*text);
    return *this;
  }

  Text& operator<<(int64_t value) {
    char digits[20];
    int n = 0;
    // Negating INT64_MIN as int64 would overflow.
    uint64_t rest = value < 0 ? 0 - static_cast<uint64_t>(value) : static_cast<uint64_t>(value);
    do digits[n++] = static_cast<char>('0' + rest % 10);
    while ((rest /= 10) > 0);
    if (value < 0) put('-');
    while (n > 0) put(digits[--n]);
    return *this;
  }

 private:
  void put(char c) {
    if (size_ + 1 >= capacity_) return;
    buffer_[size_++] = c;
    buffer_[size_] = 0;
  }

  char* buffer_;
  size_t capacity_;
  size_t size_ = 0;
};

}  // namespace roast
