// What the operations on rows share: their split among threads, rows as float32, and sums.
#pragma once

#include <cstdint>
#include <cstring>

#include "parallel.h"
#include "simd.h"

namespace everface::cpu {

constexpr std::int64_t kElementsOfThread = 1 << 15;  // fewer are sooner done than another thread is woken

inline int threads_for(std::int64_t elements, int threads) {
  const std::int64_t most = elements / kElementsOfThread;
  return most < 1 ? 1 : most < threads ? static_cast<int>(most) : threads;
}

template <class Work>
void with_threads(std::int64_t rows, std::int64_t elements, int threads, const Work& work) {
  parallel(rows, threads_for(elements, threads), [&](int, std::int64_t begin, std::int64_t end) { work(begin, end); });
}

EVERFACE_INLINE void load_row(const void* data, Type type, std::int64_t at, int n, float* to) {
  if (type == Type::float32) {
    std::memcpy(to, static_cast<const float*>(data) + at, sizeof(float) * static_cast<std::size_t>(n));
  } else {
    const std::uint16_t* from = static_cast<const std::uint16_t*>(data) + at;
#pragma omp simd
    for (int c = 0; c < n; ++c) to[c] = load(from[c]);
  }
}

EVERFACE_INLINE void store_row(void* data, Type type, std::int64_t at, int n, const float* from) {
  if (type == Type::float32) {
    std::memcpy(static_cast<float*>(data) + at, from, sizeof(float) * static_cast<std::size_t>(n));
  } else {
    std::uint16_t* to = static_cast<std::uint16_t*>(data) + at;
#pragma omp simd
    for (int c = 0; c < n; ++c) store(to[c], from[c]);
  }
}

// As bfloat16 would hold it.
EVERFACE_INLINE float rounded(float value) {
  const std::uint32_t bits = as_bits(value), up = (bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u;
  return as_float((bits & 0x7fffffffu) > 0x7f800000u ? bits : up);
}

EVERFACE_INLINE void round_row(Type type, int n, float* a) {
  if (type == Type::float32) return;
#pragma omp simd
  for (int c = 0; c < n; ++c) a[c] = rounded(a[c]);
}

EVERFACE_INLINE float sum_of(const float* a, int n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int c = 0; c < n; ++c) sum += a[c];
  return sum;
}

EVERFACE_INLINE float sum_of_squares(const float* a, int n) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int c = 0; c < n; ++c) sum += a[c] * a[c];
  return sum;
}

}  // namespace everface::cpu
