#include "rows.h"

#include <cmath>
#include <vector>

#include "row_access.h"

namespace everface::cpu {
namespace {

EVERFACE_INLINE void normalize(float* a, int n, float eps) {
  const float mean = sum_of(a, n) / static_cast<float>(n);
#pragma omp simd
  for (int c = 0; c < n; ++c) a[c] -= mean;
  const float factor = 1.0f / std::sqrt(sum_of_squares(a, n) / static_cast<float>(n) + eps);
#pragma omp simd
  for (int c = 0; c < n; ++c) a[c] *= factor;
}

// `work`: two rows.
EVERFACE_CLONES void gate_norm_modulate_rows(const GateNormModulate& g, std::int64_t begin, std::int64_t end, float* work) {
  const int n = g.channels;
  float *a = work, *b = work + n;
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t frame = row / g.frame_rows;
    load_row(g.x.data, g.x.type, row * g.x.stride, n, a);
    if (g.y.data) {
      load_row(g.y.data, g.y.type, row * g.y.stride, n, b);
      if (g.gate.data) {
        const float* gate = static_cast<const float*>(g.gate.data) + frame * g.gate.stride;
#pragma omp simd
        for (int c = 0; c < n; ++c) a[c] += gate[c] * b[c];
      } else {
#pragma omp simd
        for (int c = 0; c < n; ++c) a[c] += b[c];
      }
      round_row(g.residual.type, n, a);
      store_row(g.residual.data, g.residual.type, row * g.residual.stride, n, a);
    }
    if (!g.u.data) continue;
    round_row(g.norm, n, a);
    normalize(a, n, g.eps);
    if (g.weight.data) {
      load_row(g.weight.data, g.weight.type, 0, n, b);
#pragma omp simd
      for (int c = 0; c < n; ++c) a[c] *= b[c];
      load_row(g.bias.data, g.bias.type, 0, n, b);
#pragma omp simd
      for (int c = 0; c < n; ++c) a[c] += b[c];
    }
    round_row(g.norm, n, a);
    if (g.shift.data) {
      const float* shift = static_cast<const float*>(g.shift.data) + frame * g.shift.stride;
      const float* scale = static_cast<const float*>(g.scale.data) + frame * g.scale.stride;
#pragma omp simd
      for (int c = 0; c < n; ++c) a[c] = a[c] * (1.0f + scale[c]) + shift[c];
    }
    store_row(g.u.data, g.u.type, row * g.u.stride, n, a);
  }
}

// `work`: two rows.
EVERFACE_CLONES void norm_rope_rows(const NormRope& g, std::int64_t begin, std::int64_t end, float* work) {
  const int n = g.channels, pairs = n / g.heads / 2;
  float *a = work, *w = work + n;
  if (g.weight) load_row(g.weight, g.x.type, 0, n, w);
  for (std::int64_t row = begin; row < end; ++row) {
    load_row(g.x.data, g.x.type, row * g.x.stride, n, a);
    if (g.weight) {
      const float factor = 1.0f / std::sqrt(sum_of_squares(a, n) / static_cast<float>(n) + g.eps);
#pragma omp simd
      for (int c = 0; c < n; ++c) a[c] *= factor;
      round_row(g.x.type, n, a);
#pragma omp simd
      for (int c = 0; c < n; ++c) a[c] *= w[c];
      round_row(g.x.type, n, a);
    }
    if (g.table) {
      const float* table = g.table + row % g.tokens * pairs * 2;
      for (int head = 0; head < g.heads; ++head) {
        float* h = a + head * pairs * 2;
#pragma omp simd
        for (int p = 0; p < pairs; ++p) {
          const float even = h[2 * p], odd = h[2 * p + 1], cosine = table[2 * p], sine = table[2 * p + 1];
          h[2 * p] = even * cosine - odd * sine;
          h[2 * p + 1] = even * sine + odd * cosine;
        }
      }
    }
    store_row(g.out.data, g.out.type, row * g.out.stride + row / g.tokens * g.skip, n, a);
  }
}

// In blocks: compilers make poor vector loops of 16-bit values around float32 arithmetic.
EVERFACE_CLONES void gelu_range(const void* x, void* y, Type type, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kBlock = 1024;
  float a[kBlock];
  for (std::int64_t at = begin; at < end; at += kBlock) {
    const int n = static_cast<int>(end - at < kBlock ? end - at : kBlock);
    load_row(x, type, at, n, a);
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      const float v = a[i];
      a[i] = v / (1.0f + exponential(-1.595769122f * (v + 0.044715f * v * v * v)));  // (1 + tanh(z)) / 2 is sigmoid(2 z)
    }
    store_row(y, type, at, n, a);
  }
}

EVERFACE_CLONES void gelu_backward_range(const void* x, const void* grad_y, void* grad_x, Type type, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kBlock = 1024;
  float a[kBlock], up[kBlock];
  for (std::int64_t at = begin; at < end; at += kBlock) {
    const int n = static_cast<int>(end - at < kBlock ? end - at : kBlock);
    load_row(x, type, at, n, a);
    load_row(grad_y, type, at, n, up);
#pragma omp simd
    for (int i = 0; i < n; ++i) {
      const float low = a[i] < -7.0f ? -7.0f : a[i], v = low > 7.0f ? 7.0f : low;  // beyond the slope is 0 or 1
      const float square = 0.044715f * v * v, s = 1.0f / (1.0f + exponential_within(-1.595769122f * v * (1.0f + square)));
      a[i] = up[i] * (s + v * s * (1.0f - s) * 1.595769122f * (1.0f + 3.0f * square));
    }
    store_row(grad_x, type, at, n, a);
  }
}

EVERFACE_INLINE std::int64_t few_keys_work(const FewKeys& g) {
  return static_cast<std::int64_t>(g.keys) * g.heads * g.width * 2 + static_cast<std::int64_t>(g.heads) * g.width * 2 + g.keys;
}

// Queries begin..end of batch * tokens. `work`: few_keys_work floats.
EVERFACE_CLONES void attend_few_rows(const FewKeys& g, std::int64_t begin, std::int64_t end, float* work) {
  const int n = g.heads * g.width;
  float *k = work, *v = k + g.keys * n, *q = v + g.keys * n, *o = q + n, *p = o + n;
  const float scale = 1.0f / std::sqrt(static_cast<float>(g.width));
  std::int64_t held = -1;
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t batch = g.key_batch > 1 ? row / g.tokens : 0;
    if (batch != held) {
      load_row(g.k, g.type, batch * g.keys * n, g.keys * n, k);
      load_row(g.v, g.type, batch * g.keys * n, g.keys * n, v);
      held = batch;
    }
    load_row(g.q, g.type, row * n, n, q);
    for (int head = 0; head < g.heads; ++head) {
      const int at = head * g.width;
      float most = -INFINITY, total = 0;
      for (int s = 0; s < g.keys; ++s) {
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int c = 0; c < g.width; ++c) dot += q[at + c] * k[s * n + at + c];
        p[s] = dot * scale;
        most = p[s] > most ? p[s] : most;
      }
      for (int s = 0; s < g.keys; ++s) total += p[s] = exponential(p[s] - most);
      for (int c = 0; c < g.width; ++c) o[at + c] = 0;
      for (int s = 0; s < g.keys; ++s) {
        const float share = p[s] / total;
#pragma omp simd
        for (int c = 0; c < g.width; ++c) o[at + c] += share * v[s * n + at + c];
      }
    }
    store_row(g.o, g.type, row * n, n, o);
  }
}

}  // namespace

void gate_norm_modulate(const GateNormModulate& given, int threads) {
  with_threads(given.rows, given.rows * given.channels, threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> work(2 * static_cast<std::size_t>(given.channels));
    gate_norm_modulate_rows(given, begin, end, work.data());
  });
}

void norm_rope(const NormRope& given, int threads) {
  with_threads(given.rows, given.rows * given.channels, threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> work(2 * static_cast<std::size_t>(given.channels));
    norm_rope_rows(given, begin, end, work.data());
  });
}

void copy_rows(const Rows& from, const Rows& to, std::int64_t rows, int channels) {
  const std::int64_t size = from.type == Type::float32 ? 4 : 2;
  for (std::int64_t row = 0; row < rows; ++row)
    std::memcpy(static_cast<char*>(to.data) + row * to.stride * size, static_cast<const char*>(from.data) + row * from.stride * size,
                static_cast<std::size_t>(channels * size));
}

void gelu(const void* x, void* y, Type type, std::int64_t count, int threads) {
  with_threads(count, count, threads, [&](std::int64_t begin, std::int64_t end) { gelu_range(x, y, type, begin, end); });
}

void gelu_backward(const void* x, const void* grad_y, void* grad_x, Type type, std::int64_t count, int threads) {
  with_threads(count, count, threads, [&](std::int64_t begin, std::int64_t end) { gelu_backward_range(x, grad_y, grad_x, type, begin, end); });
}

void attend_few_keys(const FewKeys& given, int threads) {
  const std::int64_t rows = given.batch * given.tokens;
  with_threads(rows, rows * given.heads * given.width * given.keys / 4, threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> work(static_cast<std::size_t>(few_keys_work(given)));
    attend_few_rows(given, begin, end, work.data());
  });
}

}  // namespace everface::cpu
