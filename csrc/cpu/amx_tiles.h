// What the kernels on the matrix unit (AMX) share. Only in files that are built for Linux on x86-64 by GCC or clang.
#pragma once

#include <immintrin.h>

#include <cstdint>

// On functions, not on the file: what the linker merges from here with other files must run on any CPU.
#define EVERFACE_AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16")))
#define EVERFACE_AMX_INLINE EVERFACE_AMX inline __attribute__((always_inline))

namespace everface::cpu {

constexpr int kSide = 16;          // rows of a tile, and its columns of float32
constexpr int kDepth = 32;         // bfloat16 values of a tile's row
constexpr int kBlock = 2 * kSide;  // a GEMM's block is two by two tiles
constexpr int kTile = kSide * kDepth;
constexpr float kLog2E = 1.4426950408889634f;

struct alignas(64) TileConfig {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {};
  std::uint8_t rows[16] = {};
};

// All eight tiles of full size, as long as it lives.
struct Tiles {
  EVERFACE_AMX Tiles() {
    TileConfig config;
    for (int n = 0; n < 8; ++n) {
      config.row_bytes[n] = 64;
      config.rows[n] = kSide;
    }
    _tile_loadconfig(&config);
  }
  EVERFACE_AMX ~Tiles() { _tile_release(); }
};

// Two by two tiles of sums, 0 to 3: [kBlock, kBlock] float32.
EVERFACE_AMX_INLINE void store_square(float* sums) {
  _tile_stored(0, sums, kBlock * 4);
  _tile_stored(1, sums + kSide, kBlock * 4);
  _tile_stored(2, sums + kSide * kBlock, kBlock * 4);
  _tile_stored(3, sums + kSide * kBlock + kSide, kBlock * 4);
}

// All four to zero.
EVERFACE_AMX_INLINE void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

EVERFACE_AMX_INLINE __m512 widen(__m256i half) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16)); }
EVERFACE_AMX_INLINE __m512 load_16(const std::uint16_t* from, __mmask16 valid) { return widen(_mm256_maskz_loadu_epi16(valid, from)); }
EVERFACE_AMX_INLINE __mmask32 first_32(int n) { return n >= 32 ? 0xffffffffu : (1u << n) - 1; }
EVERFACE_AMX_INLINE __mmask16 first_16(int n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1); }

EVERFACE_AMX_INLINE __m512 weight_of(__m512 x) {  // 2^x for x up to 126, relative error 4e-6, as bfloat16 keeps 2e-3
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
  const __m512 k = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, k);
  __m512 p = _mm512_set1_ps(9.66637e-3f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.592198e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022349e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9312105e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, k);
}

}  // namespace everface::cpu
