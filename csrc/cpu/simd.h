// What the CPU's kernels share: one build for each instruction set, values of both types as float32, and an exponential that vectorizes.
#pragma once

#include <cstdint>
#include <cstring>

// The loader chooses among the builds. What a kernel calls must be inlined into it, or it would be built for the oldest only.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define EVERFACE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define EVERFACE_CLONES
#endif
#define EVERFACE_INLINE inline __attribute__((always_inline))

namespace everface::cpu {

enum class Type { float32, bfloat16 };

EVERFACE_INLINE float as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

EVERFACE_INLINE std::uint32_t as_bits(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

EVERFACE_INLINE float load(const float& x) { return x; }
EVERFACE_INLINE float load(const std::uint16_t& x) { return as_float(static_cast<std::uint32_t>(x) << 16); }
EVERFACE_INLINE void store(float& to, float value) { to = value; }
EVERFACE_INLINE void store(std::uint16_t& to, float value) {  // to the nearest, ties to even; a NaN stays one
  const std::uint32_t bits = as_bits(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  to = static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

// e^v for -87 <= v <= 88, relative error 2e-7: 2^k times a polynomial of the rest. Everything a compiler can vectorize.
EVERFACE_INLINE float exponential_within(float v) {
  const float shifted = v * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the integer is in the low bits
  const float k = shifted - 12582912.0f;
  const float f = (v - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  return p * as_float((as_bits(shifted) + 127u) << 23);
}

// The same for all v. GCC computes what follows for lanes beyond the limits as constants, in every vector: if one is denormal, as 1 / e^88 is,
// that takes hundreds of cycles.
EVERFACE_INLINE float exponential(float v) { return exponential_within(v < -87.0f ? -87.0f : v > 88.0f ? 88.0f : v); }

}  // namespace everface::cpu
