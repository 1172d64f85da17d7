#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "attention.h"
#include "parallel.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#include "attention_packing.h"

namespace everface::cpu {
namespace {

// The gradient of one head, 32 queries and 32 keys at a time, as their weights follow from a sum that the forward pass kept (FlashAttention-2):
// all of a step but the sums of grad_q stays in the first cache.
constexpr int kSquare = kBlock * kBlock;
constexpr int kSum = kSide * kSide;  // float32 values of a tile
constexpr int kGroup = 3;            // columns of tiles whose sums are in tiles at once: all of a head of 48

// Packed operands, and sums of grad_q [block][column][half]. By block: queries and gradients as rows, and across, as the left side of sums over them.
struct GradientScratch {
  std::vector<std::uint16_t> keys, values, keys_as_values, queries, grads, queries_across, grads_across;
  std::vector<float> sums, log_sums, means;
};

// What a step makes of a square.
struct alignas(64) Square {
  float scores[kSquare], products[kSquare];
  std::uint16_t slopes[kSquare];                                // rows
  std::uint16_t weights_across[kSquare], slopes_across[kSquare];  // two rows' interleaved, a tile for 16 keys
  float grad_k[8 * 2 * kSum], grad_v[8 * 2 * kSum];             // sums [column][half of the keys]
};

// to [kBlock, kBlock] = 32 rows times 32 packed keys.
EVERFACE_AMX_INLINE void multiply_square(const std::uint16_t* rows, const std::uint16_t* right, int depth, float* to) {
  const int row = depth * kDepth;
  zero_sums();
  for (int k = 0; k < depth; ++k) {
    _tile_loadd(4, rows + k * kDepth, row * 2);
    _tile_loadd(5, rows + kSide * row + k * kDepth, row * 2);
    _tile_loadd(6, right + k * kTile, 64);
    _tile_loadd(7, right + (depth + k) * kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  store_square(to);
}

// Weights of a square's scores and the gradients of the scores, weight * (product - mean) * scale. `valid`: of the two halves of the keys.
EVERFACE_AMX_INLINE void slope_square(Square& q, const float* log_sums, const float* means, float scale, const __mmask16* valid) {
  const __m512i interleaved = _mm512_add_epi16(_mm512_set1_epi32(16 << 16), _mm512_mullo_epi32(_mm512_set1_epi32(0x10001),
                              _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)));
  const __m512 factor = _mm512_set1_ps(scale * kLog2E), scales = _mm512_set1_ps(scale);
  for (int r = 0; r < kBlock; r += 2)
    for (int half = 0; half < 2; ++half) {
      const int at = r * kBlock + half * kSide, across = half * kTile + r / 2 * kDepth;
      const auto weight = [&](int n) EVERFACE_AMX {
        const __m512 score = _mm512_loadu_ps(q.scores + at + n * kBlock);
        return _mm512_maskz_mov_ps(valid[half], weight_of(_mm512_fmsub_ps(score, factor, _mm512_set1_ps(log_sums[r + n]))));
      };
      const auto slope = [&](int n, __m512 weight) EVERFACE_AMX {
        const __m512 product = _mm512_loadu_ps(q.products + at + n * kBlock);
        return _mm512_mul_ps(_mm512_mul_ps(weight, scales), _mm512_sub_ps(product, _mm512_set1_ps(means[r + n])));
      };
      const __m512 w0 = weight(0), w1 = weight(1), g0 = slope(0, w0), g1 = slope(1, w1);
      const __m512i w = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(w1, w0)), g = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(g1, g0));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(q.slopes + at), _mm512_castsi512_si256(g));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(q.slopes + at + kBlock), _mm512_extracti64x4_epi64(g, 1));
      _mm512_store_si512(q.weights_across + across, _mm512_permutexvar_epi16(interleaved, w));
      _mm512_store_si512(q.slopes_across + across, _mm512_permutexvar_epi16(interleaved, g));
    }
}

EVERFACE_AMX_INLINE void load_sums(const float* sums, int columns) {
  _tile_loadd(0, sums, 64);
  _tile_loadd(1, sums + kSum, 64);
  if (columns > 1) {
    _tile_loadd(2, sums + 2 * kSum, 64);
    _tile_loadd(3, sums + 3 * kSum, 64);
  }
  if (columns > 2) {
    _tile_loadd(4, sums + 4 * kSum, 64);
    _tile_loadd(5, sums + 5 * kSum, 64);
  }
}

EVERFACE_AMX_INLINE void store_sums(float* sums, int columns) {
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + kSum, 64);
  if (columns > 1) {
    _tile_stored(2, sums + 2 * kSum, 64);
    _tile_stored(3, sums + 3 * kSum, 64);
  }
  if (columns > 2) {
    _tile_stored(4, sums + 4 * kSum, 64);
    _tile_stored(5, sums + 5 * kSum, 64);
  }
}

// sums[column][half] += halves[half] times columns[column] or, across, columns[column] times halves[half]. Tiles are named by literals only.
#define EVERFACE_ADD(sum) \
  if constexpr (kAcross)  \
    _tile_dpbf16ps(sum, 6, 7); \
  else                    \
    _tile_dpbf16ps(sum, 7, 6)
template <bool kAcross>
EVERFACE_AMX_INLINE void add_products(const std::uint16_t* halves, const std::uint16_t* tiles, int columns, float* sums) {
  for (int c = 0; c < columns; c += kGroup, tiles += kGroup * kTile, sums += kGroup * 2 * kSum) {
    const int some = std::min(kGroup, columns - c);
    load_sums(sums, some);
    _tile_loadd(7, halves, 64);
    _tile_loadd(6, tiles, 64);
    EVERFACE_ADD(0);
    if (some > 1) {
      _tile_loadd(6, tiles + kTile, 64);
      EVERFACE_ADD(2);
    }
    if (some > 2) {
      _tile_loadd(6, tiles + 2 * kTile, 64);
      EVERFACE_ADD(4);
    }
    _tile_loadd(7, halves + kTile, 64);
    _tile_loadd(6, tiles, 64);
    EVERFACE_ADD(1);
    if (some > 1) {
      _tile_loadd(6, tiles + kTile, 64);
      EVERFACE_ADD(3);
    }
    if (some > 2) {
      _tile_loadd(6, tiles + 2 * kTile, 64);
      EVERFACE_ADD(5);
    }
    store_sums(sums, some);
  }
}
#undef EVERFACE_ADD

// The sum of products of two rows of bfloat16.
EVERFACE_AMX_INLINE float dot_of(const std::uint16_t* a, const std::uint16_t* b, int n) {
  __m512 total = _mm512_setzero_ps();
  for (int c = 0; c < n; c += kSide) total = _mm512_fmadd_ps(load_16(a + c, 0xffff), load_16(b + c, 0xffff), total);
  return _mm512_reduce_add_ps(total);
}

// to[key, c] of sums [column][half] of [c, key].
EVERFACE_AMX void store_keys(const float* sums, int columns, int keys, std::int64_t stride, std::uint16_t* to) {
  const __m512i column = _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), _mm512_set1_epi32(kSide));
  for (int c = 0; c < columns; ++c)
    for (int key = 0; key < std::min(keys, kBlock); ++key) {
      const float* tile = sums + (2 * c + key / kSide) * kSum + key % kSide;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + key * stride + c * kSide),
                          reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_i32gather_ps(column, tile, 4))));
    }
}

void transpose_rows(const std::uint16_t* rows, int row, int columns, std::uint16_t* to) {
  for (int c = 0; c < columns * kSide; ++c)
    for (int r = 0; r < kBlock; ++r) to[c * kBlock + r] = rows[r * row + c];
}

// Queries, their gradients, sums and means of all blocks of a head.
EVERFACE_AMX void prepare_queries(const AttentionGradient& given, const Sizes& s, int head, GradientScratch& t) {
  const BlockAttention& g = given.of;
  const int row = s.depth * kDepth, blocks = (g.queries + kBlock - 1) / kBlock;
  for (int n = 0; n < blocks; ++n) {
    const int first = n * kBlock, count = std::min(kBlock, g.queries - first);
    std::uint16_t *queries = t.queries.data() + static_cast<std::int64_t>(first) * row, *grads = t.grads.data() + static_cast<std::int64_t>(first) * row;
    load_queries(g.q + first * g.q_stride + head * g.width, g.q_stride, count, g.width, row, queries);
    load_queries(given.grad_o + first * g.o_stride + head * g.width, g.o_stride, count, g.width, row, grads);
    const std::int64_t across = static_cast<std::int64_t>(n) * s.columns * kTile;
    transpose_rows(queries, row, s.columns, t.queries_across.data() + across);
    transpose_rows(grads, row, s.columns, t.grads_across.data() + across);
    for (int r = 0; r < kBlock; ++r) {  // rows beyond the queries have a gradient of zero
      const std::uint16_t* o = g.o + (first + r) * g.o_stride + head * g.width;
      t.log_sums[static_cast<std::size_t>(first + r)] = r < count ? g.log_sums[static_cast<std::int64_t>(head) * g.queries + first + r] : 0.0f;
      t.means[static_cast<std::size_t>(first + r)] = r < count ? dot_of(grads + r * row, o, g.width) : 0.0f;
    }
  }
}

EVERFACE_AMX void attend_head_backward(const AttentionGradient& given, int head, GradientScratch& t) {
  const Tiles tiles;
  const BlockAttention& g = given.of;
  const Sizes s(g);
  const int row = s.depth * kDepth, blocks = (g.queries + kBlock - 1) / kBlock, columns = s.columns;
  const auto resize = [](auto& v, std::int64_t size) { v.resize(static_cast<std::size_t>(size)); };
  for (auto* v : {&t.keys, &t.values}) resize(*v, s.keys_of_head);
  resize(t.keys_as_values, s.values_of_head);
  for (auto* v : {&t.queries, &t.grads}) resize(*v, static_cast<std::int64_t>(blocks) * kBlock * row);
  for (auto* v : {&t.queries_across, &t.grads_across}) resize(*v, static_cast<std::int64_t>(blocks) * columns * kTile);
  for (auto* v : {&t.log_sums, &t.means}) resize(*v, static_cast<std::int64_t>(blocks) * kBlock);
  t.sums.assign(static_cast<std::size_t>(blocks) * static_cast<std::size_t>(columns) * 2 * kSum, 0.0f);
  BlockAttention turned = g;  // what packs keys packs values, and the other way round
  std::swap(turned.k, turned.v);
  pack_keys(g, s, head, t.keys.data());
  pack_keys(turned, s, head, t.values.data());
  pack_values(turned, s, head, t.keys_as_values.data());
  prepare_queries(given, s, head, t);
  const float scale = 1.0f / std::sqrt(static_cast<float>(g.width));
  const std::int64_t packed = static_cast<std::int64_t>(g.heads) * g.width, across = static_cast<std::int64_t>(columns) * kTile;
  Square q;
  for (int key = 0; key < g.keys; key += kBlock) {
    const std::int64_t chunk = key / kBlock, of_keys = chunk * 2 * s.depth * kTile;
    const __mmask16 valid[2] = {first_16(g.keys - key), first_16(g.keys - key - kSide)};
    std::fill_n(q.grad_k, columns * 2 * kSum, 0.0f);
    std::fill_n(q.grad_v, columns * 2 * kSum, 0.0f);
    for (int n = 0; n < blocks; ++n) {
      const std::int64_t first = static_cast<std::int64_t>(n) * kBlock;
      multiply_square(t.queries.data() + first * row, t.keys.data() + of_keys, s.depth, q.scores);
      multiply_square(t.grads.data() + first * row, t.values.data() + of_keys, s.depth, q.products);
      slope_square(q, t.log_sums.data() + first, t.means.data() + first, scale, valid);
      add_products<false>(q.slopes, t.keys_as_values.data() + chunk * across, columns, t.sums.data() + n * columns * 2 * kSum);
      add_products<true>(q.slopes_across, t.queries_across.data() + n * across, columns, q.grad_k);
      add_products<true>(q.weights_across, t.grads_across.data() + n * across, columns, q.grad_v);
    }
    store_keys(q.grad_k, columns, g.keys - key, packed, given.grad_k + key * packed + head * g.width);
    store_keys(q.grad_v, columns, g.keys - key, packed, given.grad_v + key * packed + head * g.width);
  }
  for (int query = 0; query < g.queries; ++query)
    for (int c = 0; c < columns; ++c) {
      const float* sums = t.sums.data() + ((query / kBlock * columns + c) * 2 + query % kBlock / kSide) * kSum + query % kSide * kSide;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(given.grad_q + query * packed + head * g.width + c * kSide),
                          reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(sums))));
    }
}

}  // namespace

void attend_block_backward(const AttentionGradient& given, int threads) {
  parallel(given.of.heads, threads, [&](int, std::int64_t begin, std::int64_t end) {
    static thread_local GradientScratch scratch;
    for (int head = static_cast<int>(begin); head < end; ++head) attend_head_backward(given, head, scratch);
  });
}

}  // namespace everface::cpu

#else

namespace everface::cpu {

void attend_block_backward(const AttentionGradient&, int) {}

}  // namespace everface::cpu

#endif
