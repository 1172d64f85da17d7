// What attention and its gradient share: sizes of a head's operands, and their packing. Only in files that are built for Linux on x86-64.
#pragma once

#include "amx_tiles.h"
#include "attention.h"

namespace everface::cpu {

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
EVERFACE_AMX inline void pack_keys(const BlockAttention& g, const Sizes& s, int head, std::uint16_t* to) {
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
EVERFACE_AMX inline void pack_values(const BlockAttention& g, const Sizes& s, int head, std::uint16_t* to) {
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

// 32 rows of a head, beyond its width zeros, as there is another head, or the end of memory.
EVERFACE_AMX inline void load_queries(const std::uint16_t* from, std::int64_t stride, int count, int width, int row, std::uint16_t* to) {
  for (int r = 0; r < kBlock; ++r)
    for (int c = 0; c < row; c += kSide) {
      const bool there = r < count && c < width;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + r * row + c),
                          there ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + r * stride + c)) : _mm256_setzero_si256());
    }
}

}  // namespace everface::cpu
