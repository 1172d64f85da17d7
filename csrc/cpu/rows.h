// What a transformer does to its rows between two GEMMs, a pass each: the CPU's builds of kernels/fused, where the contracts and roundings stand.
#pragma once

#include "simd.h"

namespace everface::cpu {

// Rows of one type without gaps inside. Row r of the operation is at data + r * stride elements; a stride of 0 is one row for all.
struct Rows {
  void* data;  // null: the operation does without
  Type type;
  std::int64_t stride;
};

struct GateNormModulate {
  Rows x, y, residual, u, weight, bias;
  Rows gate, shift, scale;  // one row every `frame_rows`
  Type norm;                // what x' and its norm are rounded to
  float eps;
  std::int64_t rows, frame_rows;
  int channels;
};

// residual = x + gate * y; u = LayerNorm(residual) * (1 + scale) + shift. Without u the residual alone, without y it is x and not written.
void gate_norm_modulate(const GateNormModulate& given, int threads);

struct NormRope {
  Rows x, out;
  const void* weight;   // [channels] of x's type; null: no norm
  const float* table;   // [tokens][channels / heads / 2][cos, sin], read again every `tokens` rows; null: no rotation
  std::int64_t rows, tokens, skip;  // `skip` elements of out are left out after every `tokens` rows
  float eps;
  int channels, heads;
};

// out = rotate(x / sqrt(mean(x^2) + eps) * weight). x and out have one type and may be the same rows.
void norm_rope(const NormRope& given, int threads);

void copy_rows(const Rows& from, const Rows& to, std::int64_t rows, int channels);  // of one type

// y = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))). One type; x and y may be the same.
void gelu(const void* x, void* y, Type type, std::int64_t count, int threads);
void gelu_backward(const void* x, const void* grad_y, void* grad_x, Type type, std::int64_t count, int threads);

// o = softmax(q . k^T / sqrt(width)) v for a few keys. q, o [batch, tokens, heads, width], k, v [batch or 1, keys, heads, width], without gaps.
struct FewKeys {
  const void *q, *k, *v;
  void* o;
  Type type;
  std::int64_t batch, key_batch, tokens;
  int keys, heads, width;
};

void attend_few_keys(const FewKeys& given, int threads);

}  // namespace everface::cpu
