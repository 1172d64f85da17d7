#include "amx.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "amx_tiles.h"

namespace everface::cpu {
namespace {

bool ask_for_amx() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned kTileBits = (1u << 22) | (1u << 24);                                   // amx-bf16, amx-tile
  constexpr unsigned kVectorBits = (1u << 16) | (1u << 17) | (1u << 30) | (1u << 31);       // avx512 f, dq, bw, vl
  if ((d & kTileBits) != kTileBits || (b & kVectorBits) != kVectorBits) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & (1u << 5))) return false;           // avx512_bf16
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

EVERFACE_AMX_INLINE __m512 exp2_of(__m512 x) {  // relative error 2e-7, for -126 to 126
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), _mm512_min_ps(_mm512_set1_ps(126.0f), x));  // normal numbers, as others take a hundred times as long; a NaN stays
  const __m512 k = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, k);
  __m512 p = _mm512_set1_ps(1.54034e-4f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.339887e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.618437e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5503325e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022648e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314720e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, k);
}

EVERFACE_AMX_INLINE __m512 gelu_of(__m512 v) {  // (1 + tanh(z)) / 2 is sigmoid(2 z)
  const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(v, v), v);
  const __m512 z = _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), v);
  const __m512 e = exp2_of(_mm512_mul_ps(z, _mm512_set1_ps(-1.595769122f * kLog2E)));
  return _mm512_div_ps(v, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
}

EVERFACE_AMX_INLINE void multiply_block(const std::uint16_t* x0, const std::uint16_t* x1, std::int64_t x_stride, const std::uint16_t* w, int depth,
                                        float* sums) {
  zero_sums();
  const std::uint16_t* w1 = w + static_cast<std::int64_t>(depth) * kTile;
  for (int k = 0; k < depth; ++k) {
    _tile_loadd(4, x0 + k * kDepth, x_stride * 2);
    _tile_loadd(5, x1 + k * kDepth, x_stride * 2);
    _tile_loadd(6, w + k * kTile, 64);
    _tile_loadd(7, w1 + k * kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  store_square(sums);
}

// Columns of blocks begin..end. `padded`: kBlock * in values, for the last rows.
EVERFACE_AMX void linear_columns(const Linear& g, std::int64_t begin, std::int64_t end, std::uint16_t* padded) {
  const Tiles tiles;
  alignas(64) float sums[kBlock * kBlock];
  const int depth = g.in / kDepth;
  for (std::int64_t column = begin; column < end; ++column) {
    const std::uint16_t* w = g.packed + column * 2 * depth * kTile;
    const int left = g.out - static_cast<int>(column) * kBlock;
    const __mmask32 valid = first_32(left);
    __m512 bias0 = _mm512_setzero_ps(), bias1 = bias0;
    if (g.bias) {
      const __m512i both = _mm512_maskz_loadu_epi16(valid, g.bias + column * kBlock);
      bias0 = widen(_mm512_castsi512_si256(both));
      bias1 = widen(_mm512_extracti64x4_epi64(both, 1));
    }
    for (std::int64_t row = 0; row < g.rows; row += kBlock) {
      const int count = static_cast<int>(std::min<std::int64_t>(kBlock, g.rows - row));
      const std::uint16_t* x = g.x + row * g.x_stride;
      std::int64_t stride = g.x_stride;
      if (count < kBlock) {  // a tile's load would read past the end
        for (int r = 0; r < kBlock; ++r)
          for (int c = 0; c < g.in; ++c) padded[r * g.in + c] = r < count ? x[r * stride + c] : std::uint16_t{0};
        x = padded;
        stride = g.in;
      }
      multiply_block(x, x + kSide * stride, stride, w, depth, sums);
      for (int r = 0; r < count; ++r) {
        __m512 a = _mm512_add_ps(_mm512_load_ps(sums + r * kBlock), bias0), b = _mm512_add_ps(_mm512_load_ps(sums + r * kBlock + kSide), bias1);
        if (g.gelu) {
          a = gelu_of(a);
          b = gelu_of(b);
        }
        _mm512_mask_storeu_epi16(g.y + (row + r) * g.y_stride + column * kBlock, valid, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
      }
    }
  }
}

}  // namespace

bool has_amx() {
  static const bool has = ask_for_amx();
  return has;
}

void linear(const Linear& given, int threads) {
  const std::int64_t columns = (given.out + kBlock - 1) / kBlock, work = given.rows * given.in * given.out;
  parallel(columns, work < (1 << 22) ? 1 : threads, [&](int, std::int64_t begin, std::int64_t end) {
    std::vector<std::uint16_t> padded(given.rows % kBlock ? static_cast<std::size_t>(kBlock) * static_cast<std::size_t>(given.in) : 0);
    linear_columns(given, begin, end, padded.data());
  });
}

std::int64_t packed_size(int out, int in) { return static_cast<std::int64_t>((out + kBlock - 1) / kBlock) * kBlock * in; }

void pack_weight(const std::uint16_t* weight, std::uint16_t* packed, int out, int in) {
  for (int column = 0; column < (out + kBlock - 1) / kBlock * 2; ++column)
    for (int k = 0; k < in / kDepth; ++k)
      for (int pair = 0; pair < kSide; ++pair)
        for (int n = 0; n < kSide; ++n) {
          const int o = column * kSide + n, i = k * kDepth + 2 * pair;
          *packed++ = o < out ? weight[static_cast<std::int64_t>(o) * in + i] : std::uint16_t{0};
          *packed++ = o < out ? weight[static_cast<std::int64_t>(o) * in + i + 1] : std::uint16_t{0};
        }
}

}  // namespace everface::cpu

#else

namespace everface::cpu {

bool has_amx() { return false; }
std::int64_t packed_size(int, int) { return 0; }
void pack_weight(const std::uint16_t*, std::uint16_t*, int, int) {}
void linear(const Linear&, int) {}

}  // namespace everface::cpu

#endif
