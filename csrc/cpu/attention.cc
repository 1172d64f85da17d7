#include "attention.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "parallel.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#include "attention_packing.h"

namespace everface::cpu {
namespace {

// Scratch of one block of queries.
struct Scratch {
  float *scores, *sums;
  std::uint16_t *queries, *weights;
};

// Scores and weights of a row to `padded` keys, of which those from `keys` on weigh nothing. Returns the sum of the weights; `most`: the largest score.
EVERFACE_AMX_INLINE float softmax_row(float* scores, std::uint16_t* weights, int keys, int padded, float scale, float* most) {
  for (int key = keys; key < padded; ++key) scores[key] = -1e30f;
  __m512 most0 = _mm512_loadu_ps(scores), most1 = most0;
  for (int key = 0; key < padded; key += kDepth) {
    most0 = _mm512_max_ps(most0, _mm512_loadu_ps(scores + key));
    most1 = _mm512_max_ps(most1, _mm512_loadu_ps(scores + key + kSide));
  }
  *most = _mm512_reduce_max_ps(_mm512_max_ps(most0, most1)) * scale;
  const __m512 offset = _mm512_set1_ps(-*most), factor = _mm512_set1_ps(scale);
  __m512 total = _mm512_setzero_ps();
  for (int key = 0; key < padded; key += kDepth) {
    const __m512 a = weight_of(_mm512_fmadd_ps(_mm512_loadu_ps(scores + key), factor, offset));
    const __m512 b = weight_of(_mm512_fmadd_ps(_mm512_loadu_ps(scores + key + kSide), factor, offset));
    total = _mm512_add_ps(total, _mm512_add_ps(a, b));
    _mm512_storeu_si512(weights + key, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(b, a)));
  }
  return _mm512_reduce_add_ps(total);
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
  for (int r = 0; r < kBlock; ++r) {
    float most;
    total[r] = softmax_row(t.scores + r * s.score_stride, t.weights + r * s.weight_stride, g.keys, s.keys, scale, &most);
    if (g.log_sums && r < count) g.log_sums[static_cast<std::int64_t>(head) * g.queries + first + r] = most + std::log2(total[r]);
  }
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

}  // namespace everface::cpu

#else

namespace everface::cpu {

void attend_block(const BlockAttention&, int) {}

}  // namespace everface::cpu

#endif
