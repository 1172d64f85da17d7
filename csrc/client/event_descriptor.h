// A descriptor that another thread, or poll, waits for.
#pragma once

#include <cstdint>
#include <unistd.h>

namespace everface::client {

inline void set_event(int descriptor) {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t done = ::write(descriptor, &one, sizeof one);
}

inline void clear_event(int descriptor) {
  uint64_t count;
  [[maybe_unused]] const ssize_t done = ::read(descriptor, &count, sizeof count);
}

}  // namespace everface::client
