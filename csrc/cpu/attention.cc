#include "attention.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "parallel.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#include "amx_tiles.h"

namespace everface::cpu {
namespace {

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

// 32 rows of a head, beyond its width zeros, as there is another head, or the end of memory.
EVERFACE_AMX void load_queries(const std::uint16_t* from, std::int64_t stride, int count, int width, int row, std::uint16_t* to) {
  for (int r = 0; r < kBlock; ++r)
    for (int c = 0; c < row; c += kSide) {
      const bool there = r < count && c < width;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + r * row + c),
                          there ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + r * stride + c)) : _mm256_setzero_si256());
    }
}

// [kBlock, keys] float32 of 32 rows times a packed right side.
EVERFACE_AMX_INLINE void multiply_keys(const std::uint16_t* queries, const std::uint16_t* right, const Sizes& s, float* to) {
  const int row = s.depth * kDepth;
  for (int key = 0; key < s.keys / kSide; ++key) {
    _tile_zero(0);
    _tile_zero(1);
    for (int k = 0; k < s.depth; ++k) {
      _tile_loadd(2, queries + k * kDepth, row * 2);
      _tile_loadd(3, queries + kSide * row + k * kDepth, row * 2);
      _tile_loadd(4, right + (static_cast<std::int64_t>(key) * s.depth + k) * kTile, 64);
      _tile_dpbf16ps(0, 2, 4);
      _tile_dpbf16ps(1, 3, 4);
    }
    _tile_stored(0, to + key * kSide, s.score_stride * 4);
    _tile_stored(1, to + kSide * s.score_stride + key * kSide, s.score_stride * 4);
  }
}

// One head of kBlock queries from `first` on.
EVERFACE_AMX void attend_queries(const BlockAttention& g, const Sizes& s, int head, int first, const std::uint16_t* keys, const std::uint16_t* values,
                                 const Scratch& t) {
  const Tiles tiles;
  const int count = std::min(kBlock, g.queries - first), row = s.depth * kDepth;
  load_queries(g.q + first * g.q_stride + head * g.width, g.q_stride, count, g.width, row, t.queries);
  multiply_keys(t.queries, keys, s, t.scores);
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

// Of one head's gradient: packed operands, and of all queries the weights and the gradient of their scores as a right side, two queries' interleaved.
struct GradientScratch {
  std::vector<std::uint16_t> keys, values, keys_as_values, queries, grads, rows, weights, slopes, queries_across, grads_across;
  std::vector<float> scores, products, sums;
};

// Of a row: its weights, and the gradient of its scores, weight * (product - sum of weight * product) * scale.
EVERFACE_AMX_INLINE void softmax_slope_row(float* scores, const float* products, std::uint16_t* weights, std::uint16_t* slopes, int keys, int padded,
                                           float scale) {
  for (int key = keys; key < padded; ++key) scores[key] = -1e30f;
  __m512 most = _mm512_loadu_ps(scores);
  for (int key = kSide; key < padded; key += kSide) most = _mm512_max_ps(most, _mm512_loadu_ps(scores + key));
  const __m512 offset = _mm512_set1_ps(-_mm512_reduce_max_ps(most) * scale * kLog2E), factor = _mm512_set1_ps(scale * kLog2E);
  __m512 total = _mm512_setzero_ps(), dot = total;
  for (int key = 0; key < padded; key += kSide) {
    const __m512 weight = weight_of(_mm512_fmadd_ps(_mm512_loadu_ps(scores + key), factor, offset));
    total = _mm512_add_ps(total, weight);
    dot = _mm512_fmadd_ps(weight, _mm512_loadu_ps(products + key), dot);
    _mm512_storeu_ps(scores + key, weight);
  }
  const float sum = _mm512_reduce_add_ps(total);
  const __m512 share = _mm512_set1_ps(1.0f / sum), mean = _mm512_set1_ps(_mm512_reduce_add_ps(dot) / sum), scales = _mm512_set1_ps(scale);
  for (int key = 0; key < padded; key += kSide) {
    const __m512 weight = _mm512_mul_ps(_mm512_loadu_ps(scores + key), share);
    const __m512 slope = _mm512_mul_ps(_mm512_mul_ps(weight, scales), _mm512_sub_ps(_mm512_loadu_ps(products + key), mean));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + key), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(weight)));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(slopes + key), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(slope)));
  }
}

// 32 rows of [keys] as a right side: tiles of 16 pairs of rows and 16 keys.
EVERFACE_AMX void interleave_rows(const std::uint16_t* rows, const Sizes& s, std::uint16_t* to) {
  for (int key = 0; key < s.keys; key += kSide)
    for (int pair = 0; pair < kSide; ++pair) {
      const std::uint16_t* from = rows + 2 * pair * s.weight_stride + key;
      const __m256i even = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
      const __m256i odd = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + s.weight_stride));
      _mm512_storeu_si512(to + static_cast<std::int64_t>(key / kSide) * kTile + pair * kDepth,
                          _mm512_or_si512(_mm512_cvtepu16_epi32(even), _mm512_slli_epi32(_mm512_cvtepu16_epi32(odd), 16)));
    }
}

// to[key, c] = sum over queries of left[c, query] right[query, key]: both in the order of interleave_rows' blocks.
EVERFACE_AMX void multiply_across(const std::uint16_t* left, const std::uint16_t* right, const Sizes& s, int blocks, int keys, std::int64_t stride,
                                  std::uint16_t* to) {
  alignas(64) float sums[kSide * kSide];
  const __m512i column = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(kSide));
  const std::int64_t block = static_cast<std::int64_t>(s.keys / kSide) * kTile;
  for (int key = 0; key < keys; key += kSide)
    for (int c = 0; c < s.columns; ++c) {
      _tile_zero(0);
      for (int n = 0; n < blocks; ++n) {
        _tile_loadd(1, left + (static_cast<std::int64_t>(n) * s.columns + c) * kTile, 64);
        _tile_loadd(2, right + n * block + static_cast<std::int64_t>(key / kSide) * kTile, 64);
        _tile_dpbf16ps(0, 1, 2);
      }
      _tile_stored(0, sums, 64);
      for (int r = 0; r < std::min(kSide, keys - key); ++r)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (key + r) * stride + c * kSide),
                            reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_i32gather_ps(column, sums + r, 4))));
    }
}

void transpose_queries(const std::uint16_t* queries, int row, int columns, std::uint16_t* to) {
  for (int c = 0; c < columns * kSide; ++c)
    for (int r = 0; r < kBlock; ++r) to[c * kBlock + r] = queries[r * row + c];
}

EVERFACE_AMX void attend_head_backward(const AttentionGradient& given, int head, GradientScratch& t) {
  const Tiles tiles;
  const BlockAttention& g = given.of;
  const Sizes s(g);
  const int row = s.depth * kDepth, blocks = (g.queries + kBlock - 1) / kBlock;
  const std::int64_t of_block = static_cast<std::int64_t>(s.keys / kSide) * kTile, across = static_cast<std::int64_t>(s.columns) * kTile;
  const auto resize = [](auto& v, std::int64_t size) { v.resize(static_cast<std::size_t>(size)); };
  for (auto* v : {&t.keys, &t.values}) resize(*v, s.keys_of_head);
  resize(t.keys_as_values, s.values_of_head);
  for (auto* v : {&t.queries, &t.grads}) resize(*v, kBlock * row);
  resize(t.rows, 2 * kBlock * s.weight_stride);
  for (auto* v : {&t.weights, &t.slopes}) resize(*v, blocks * of_block);
  for (auto* v : {&t.queries_across, &t.grads_across}) resize(*v, blocks * across);
  for (auto* v : {&t.scores, &t.products}) resize(*v, kBlock * s.score_stride);
  resize(t.sums, 2 * kSide * kSide);
  BlockAttention turned = g;  // what packs keys packs values, and the other way round
  std::swap(turned.k, turned.v);
  pack_keys(g, s, head, t.keys.data());
  pack_keys(turned, s, head, t.values.data());
  pack_values(turned, s, head, t.keys_as_values.data());
  std::uint16_t *weights = t.rows.data(), *slopes = weights + kBlock * s.weight_stride;
  const float scale = 1.0f / std::sqrt(static_cast<float>(g.width));
  const std::int64_t packed = static_cast<std::int64_t>(g.heads) * g.width;
  for (int n = 0; n < blocks; ++n) {
    const int first = n * kBlock, count = std::min(kBlock, g.queries - first);
    load_queries(g.q + first * g.q_stride + head * g.width, g.q_stride, count, g.width, row, t.queries.data());
    load_queries(given.grad_o + first * g.o_stride + head * g.width, g.o_stride, count, g.width, row, t.grads.data());
    multiply_keys(t.queries.data(), t.keys.data(), s, t.scores.data());
    multiply_keys(t.grads.data(), t.values.data(), s, t.products.data());
    for (int r = 0; r < kBlock; ++r)  // rows beyond the queries have a gradient of zero
      softmax_slope_row(t.scores.data() + r * s.score_stride, t.products.data() + r * s.score_stride, weights + r * s.weight_stride,
                        slopes + r * s.weight_stride, g.keys, s.keys, scale);
    for (int c = 0; c < s.columns; ++c) {
      _tile_zero(0);
      _tile_zero(1);
      for (int k = 0; k < s.keys / kDepth; ++k) {
        _tile_loadd(2, slopes + k * kDepth, s.weight_stride * 2);
        _tile_loadd(3, slopes + kSide * s.weight_stride + k * kDepth, s.weight_stride * 2);
        _tile_loadd(4, t.keys_as_values.data() + (static_cast<std::int64_t>(k) * s.columns + c) * kTile, 64);
        _tile_dpbf16ps(0, 2, 4);
        _tile_dpbf16ps(1, 3, 4);
      }
      _tile_stored(0, t.sums.data(), 64);
      _tile_stored(1, t.sums.data() + kSide * kSide, 64);
      for (int r = 0; r < count; ++r)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(given.grad_q + (first + r) * packed + head * g.width + c * kSide),
                            reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(t.sums.data() + r * kSide))));
    }
    interleave_rows(weights, s, t.weights.data() + n * of_block);
    interleave_rows(slopes, s, t.slopes.data() + n * of_block);
    transpose_queries(t.queries.data(), row, s.columns, t.queries_across.data() + n * across);
    transpose_queries(t.grads.data(), row, s.columns, t.grads_across.data() + n * across);
  }
  multiply_across(t.queries_across.data(), t.slopes.data(), s, blocks, g.keys, packed, given.grad_k + head * g.width);
  multiply_across(t.grads_across.data(), t.weights.data(), s, blocks, g.keys, packed, given.grad_v + head * g.width);
}

}  // namespace

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

void attend_block_backward(const AttentionGradient& given, int threads) {
  parallel(given.of.heads, threads, [&](int, std::int64_t begin, std::int64_t end) {
    static thread_local GradientScratch scratch;
    for (int head = static_cast<int>(begin); head < end; ++head) attend_head_backward(given, head, scratch);
  });
}

}  // namespace everface::cpu

#else

namespace everface::cpu {

void attend_block(const BlockAttention&, int) {}
void attend_block_backward(const AttentionGradient&, int) {}

}  // namespace everface::cpu

#endif
