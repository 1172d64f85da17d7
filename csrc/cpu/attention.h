// Self-attention in bfloat16 on the matrix unit of Intel's server CPUs (AMX), and its gradient: torch's takes eight times its forward's time there.
#pragma once

#include <cstdint>

namespace everface::cpu {

struct BlockAttention {
  const std::uint16_t *q, *k, *v;
  std::uint16_t* o;
  std::int64_t q_stride, kv_stride, o_stride;  // elements from token to token; heads and their width are side by side
  int queries, keys, heads, width;             // width: a multiple of 16
  float* log_sums;  // [heads][queries], for the gradient: of each query, log2 of the sum of e^score. Null: not wanted
};

// o = softmax(q . k^T / sqrt(width)) v. Scores and sums in float32, weights rounded for their product with v.
void attend_block(const BlockAttention& given, int threads);

struct AttentionGradient {
  BlockAttention of;             // as attend_block left it, o and log_sums too
  const std::uint16_t* grad_o;   // like o
  std::uint16_t *grad_q, *grad_k, *grad_v;  // [tokens, heads, width] without gaps
};

// The gradients of attend_block; weights and the gradient of scores rounded for their products.
void attend_block_backward(const AttentionGradient& given, int threads);

}  // namespace everface::cpu
