// Ranges over the threads of the OpenMP runtime that is loaded already, which is torch's: a second pool would fight with it for the cores.
#pragma once

#include <cstdint>
#include <functional>

namespace everface::cpu {

// work(thread, begin, end) over at most `threads` ranges of 0..count, in this thread where no OpenMP runtime is loaded. Returns how many ranges there were.
int parallel(std::int64_t count, int threads, const std::function<void(int, std::int64_t, std::int64_t)>& work);

}  // namespace everface::cpu
