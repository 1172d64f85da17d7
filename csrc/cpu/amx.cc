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

constexpr float kLog2E = 1.4426950408889634f;

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
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
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
  _tile_stored(0, sums, kBlock * 4);
  _tile_stored(1, sums + kSide, kBlock * 4);
  _tile_stored(2, sums + kSide * kBlock, kBlock * 4);
  _tile_stored(3, sums + kSide * kBlock + kSide, kBlock * 4);
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

// What the attention of one head reads and writes: sizes in elements.
struct Sizes {
  int depth, columns, keys, score_stride, weight_stride;
  std::int64_t keys_of_head, values_of_head;

  explicit Sizes(const BlockAttention& g)
      : depth((g.width + kDepth - 1) / kDepth),
        columns(g.width / kSide),
        keys((g.keys + kDepth - 1) / kDepth * kDepth),
        score_stride(keys + kSide),    // not a power of two: rows must not share the sets of a cache
        weight_stride(keys + kDepth),
        keys_of_head(static_cast<std::int64_t>(keys / kSide) * depth * kTile),
        values_of_head(static_cast<std::int64_t>(keys / kDepth) * columns * kTile) {}
};

// Keys of a head as the right side of q . k^T: tile by tile, pairs of a key's values one below the other.
EVERFACE_AMX void pack_keys(const BlockAttention& g, const Sizes& s, int head, std::uint16_t* to) {
  const __m512i row = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(static_cast<int>(g.kv_stride / 2)));
  for (int key = 0; key < s.keys; key += kSide) {
    const std::uint16_t* from = g.k + key * g.kv_stride + head * g.width;
    const __mmask16 valid = first_16(g.keys - key);
    for (int pair = 0; pair < s.depth * kSide; ++pair) {
      __m512i words = _mm512_setzero_si512();
      if (2 * pair < g.width) words = _mm512_mask_i32gather_epi32(words, valid, row, reinterpret_cast<const int*>(from) + pair, 4);
      _mm512_storeu_si512(to + (static_cast<std::int64_t>(key / kSide) * s.depth * kSide + pair) * kDepth, words);
    }
  }
}

// Values of a head as the right side of weights . v: tile by tile, two keys' values interleaved.
EVERFACE_AMX void pack_values(const BlockAttention& g, const Sizes& s, int head, std::uint16_t* to) {
  for (int pair = 0; pair < s.keys / 2; ++pair)
    for (int column = 0; column < s.columns; ++column) {
      const std::uint16_t* from = g.v + 2 * pair * g.kv_stride + head * g.width + column * kSide;
      const __m256i none = _mm256_setzero_si256();
      const __m256i even = 2 * pair < g.keys ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)) : none;
      const __m256i odd = 2 * pair + 1 < g.keys ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + g.kv_stride)) : none;
      const __m512i words = _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16));
      _mm512_storeu_si512(to + ((static_cast<std::int64_t>(pair / kSide) * s.columns + column) * kSide + pair % kSide) * kDepth, words);
    }
}

// Scratch of one block of queries.
struct Scratch {
  float *scores, *sums;
  std::uint16_t *queries, *weights;
};

// Scores and weights of a row to `padded` keys, of which those from `keys` on weigh nothing. Returns the sum of the weights.
EVERFACE_AMX_INLINE float softmax_row(float* scores, std::uint16_t* weights, int keys, int padded, float scale) {
  for (int key = keys; key < padded; ++key) scores[key] = -1e30f;
  __m512 most0 = _mm512_loadu_ps(scores), most1 = most0;
  for (int key = 0; key < padded; key += kDepth) {
    most0 = _mm512_max_ps(most0, _mm512_loadu_ps(scores + key));
    most1 = _mm512_max_ps(most1, _mm512_loadu_ps(scores + key + kSide));
  }
  const __m512 offset = _mm512_set1_ps(-_mm512_reduce_max_ps(_mm512_max_ps(most0, most1)) * scale), factor = _mm512_set1_ps(scale);
  __m512 total = _mm512_setzero_ps();
  for (int key = 0; key < padded; key += kDepth) {
    const __m512 a = weight_of(_mm512_fmadd_ps(_mm512_loadu_ps(scores + key), factor, offset));
    const __m512 b = weight_of(_mm512_fmadd_ps(_mm512_loadu_ps(scores + key + kSide), factor, offset));
    total = _mm512_add_ps(total, _mm512_add_ps(a, b));
    _mm512_storeu_si512(weights + key, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
  }
  return _mm512_reduce_add_ps(total);
}

// One head of kBlock queries from `first` on.
EVERFACE_AMX void attend_queries(const BlockAttention& g, const Sizes& s, int head, int first, const std::uint16_t* keys, const std::uint16_t* values,
                                 const Scratch& t) {
  const Tiles tiles;
  const int count = std::min(kBlock, g.queries - first), row = s.depth * kDepth;
  for (int r = 0; r < kBlock; ++r)  // beyond a head's width zeros, as there is another head, or the end of memory
    for (int c = 0; c < row; c += kSide) {
      const bool there = r < count && c < g.width;
      const std::uint16_t* from = g.q + (first + r) * g.q_stride + head * g.width + c;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(t.queries + r * row + c),
                          there ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)) : _mm256_setzero_si256());
    }
  for (int key = 0; key < s.keys / kSide; ++key) {
    _tile_zero(0);
    _tile_zero(1);
    for (int k = 0; k < s.depth; ++k) {
      _tile_loadd(2, t.queries + k * kDepth, row * 2);
      _tile_loadd(3, t.queries + kSide * row + k * kDepth, row * 2);
      _tile_loadd(4, keys + (static_cast<std::int64_t>(key) * s.depth + k) * kTile, 64);
      _tile_dpbf16ps(0, 2, 4);
      _tile_dpbf16ps(1, 3, 4);
    }
    _tile_stored(0, t.scores + key * kSide, s.score_stride * 4);
    _tile_stored(1, t.scores + kSide * s.score_stride + key * kSide, s.score_stride * 4);
  }
  float total[kBlock];
  const float scale = kLog2E / std::sqrt(static_cast<float>(g.width));
  for (int r = 0; r < kBlock; ++r) total[r] = softmax_row(t.scores + r * s.score_stride, t.weights + r * s.weight_stride, g.keys, s.keys, scale);
  for (int column = 0; column < s.columns; ++column) {
    _tile_zero(0);
    _tile_zero(1);
    for (int k = 0; k < s.keys / kDepth; ++k) {
      _tile_loadd(2, t.weights + k * kDepth, s.weight_stride * 2);
      _tile_loadd(3, t.weights + kSide * s.weight_stride + k * kDepth, s.weight_stride * 2);
      _tile_loadd(4, values + (static_cast<std::int64_t>(k) * s.columns + column) * kTile, 64);
      _tile_dpbf16ps(0, 2, 4);
      _tile_dpbf16ps(1, 3, 4);
    }
    _tile_stored(0, t.sums, 64);
    _tile_stored(1, t.sums + kSide * kSide, 64);
    for (int r = 0; r < count; ++r) {
      const __m512 mean = _mm512_div_ps(_mm512_loadu_ps(t.sums + r * kSide), _mm512_set1_ps(total[r]));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(g.o + (first + r) * g.o_stride + head * g.width + column * kSide),
                          reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(mean)));
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

void attend_block(const BlockAttention& given, int threads) {
  const Sizes s(given);
  static thread_local std::vector<std::uint16_t> packed;  // kept, as memory that is new has to be mapped first
  packed.resize(static_cast<std::size_t>((s.keys_of_head + s.values_of_head) * given.heads));
  std::uint16_t *keys = packed.data(), *values = keys + s.keys_of_head * given.heads;
  parallel(given.heads, threads, [&](int, std::int64_t begin, std::int64_t end) {
    for (int head = static_cast<int>(begin); head < end; ++head) {
      pack_keys(given, s, head, keys + head * s.keys_of_head);
      pack_values(given, s, head, values + head * s.values_of_head);
    }
  });
  const int blocks = (given.queries + kBlock - 1) / kBlock;
  parallel(static_cast<std::int64_t>(blocks) * given.heads, threads, [&](int, std::int64_t begin, std::int64_t end) {
    static thread_local std::vector<float> floats;
    static thread_local std::vector<std::uint16_t> halves;
    floats.resize(static_cast<std::size_t>(kBlock * (s.score_stride + kSide)));
    halves.resize(static_cast<std::size_t>(kBlock * (s.weight_stride + s.depth * kDepth)));
    const Scratch scratch{floats.data(), floats.data() + kBlock * s.score_stride, halves.data() + kBlock * s.weight_stride, halves.data()};
    for (std::int64_t job = begin; job < end; ++job) {
      const int head = static_cast<int>(job / blocks);
      attend_queries(given, s, head, static_cast<int>(job % blocks) * kBlock, keys + head * s.keys_of_head, values + head * s.values_of_head, scratch);
    }
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
void attend_block(const BlockAttention&, int) {}

}  // namespace everface::cpu

#endif
