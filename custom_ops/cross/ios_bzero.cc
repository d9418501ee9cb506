// Compilers for Apple's systems call bzero, which zig knows for macOS only.
#include <stddef.h>

extern "C" __attribute__((visibility("hidden"))) void bzero(void* data, size_t n) {
  // Volatile, or the loop becomes a call of bzero.
  for (size_t k = 0; k < n; ++k) static_cast<volatile char*>(data)[k] = 0;
}
