#include "rows_gradient.h"

#include <cmath>
#include <vector>

#include "row_access.h"

namespace everface::cpu {
namespace {

// Groups begin..end. `work`: two rows.
EVERFACE_CLONES void norm_groups(const NormGradient& g, std::int64_t begin, std::int64_t end, float* work) {
  const int n = g.channels;
  const float share = 1.0f / static_cast<float>(n);
  float *a = work, *up = work + n;
  for (std::int64_t group = begin; group < end; ++group) {
    const float* factor = g.factor + group * g.factor_stride;
    float* sums = g.grad_factor + group * n;
    float* shifts = g.grad_shift ? g.grad_shift + group * n : nullptr;
    std::memset(sums, 0, sizeof(float) * static_cast<std::size_t>(n));
    if (shifts) std::memset(shifts, 0, sizeof(float) * static_cast<std::size_t>(n));
    for (std::int64_t row = group * g.group_rows; row < (group + 1) * g.group_rows; ++row) {
      load_row(g.x.data, g.x.type, row * g.x.stride, n, a);
      load_row(g.grad_u.data, g.grad_u.type, row * g.grad_u.stride, n, up);
      const float mean = g.center ? sum_of(a, n) * share : 0.0f;
#pragma omp simd
      for (int c = 0; c < n; ++c) a[c] -= mean;
      const float inverse = 1.0f / std::sqrt(sum_of_squares(a, n) * share + g.eps);
      if (shifts)
#pragma omp simd
        for (int c = 0; c < n; ++c) shifts[c] += up[c];
      float sum = 0, dot = 0;
#pragma omp simd reduction(+ : sum, dot)
      for (int c = 0; c < n; ++c) {
        a[c] *= inverse;
        sums[c] += up[c] * a[c];
        up[c] *= factor[c];
        sum += up[c];
        dot += up[c] * a[c];
      }
      const float first = g.center ? sum * share : 0.0f, second = dot * share;
#pragma omp simd
      for (int c = 0; c < n; ++c) a[c] = inverse * (up[c] - first - a[c] * second);
      store_row(g.grad_x.data, g.grad_x.type, row * g.grad_x.stride, n, a);
    }
  }
}

// As above.
EVERFACE_CLONES void gate_groups(const GateGradient& g, std::int64_t begin, std::int64_t end, float* work) {
  const int n = g.channels;
  float *a = work, *up = work + n;
  for (std::int64_t group = begin; group < end; ++group) {
    const float* gate = g.gate + group * g.gate_stride;
    float* sums = g.grad_gate + group * n;
    std::memset(sums, 0, sizeof(float) * static_cast<std::size_t>(n));
    for (std::int64_t row = group * g.group_rows; row < (group + 1) * g.group_rows; ++row) {
      load_row(g.y.data, g.y.type, row * g.y.stride, n, a);
      load_row(g.grad.data, g.grad.type, row * g.grad.stride, n, up);
#pragma omp simd
      for (int c = 0; c < n; ++c) {
        sums[c] += up[c] * a[c];
        up[c] *= gate[c];
      }
      store_row(g.grad_y.data, g.grad_y.type, row * g.grad_y.stride, n, up);
    }
  }
}

}  // namespace

void norm_backward(const NormGradient& given, int threads) {
  with_threads(given.groups, given.groups * given.group_rows * given.channels, threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> work(2 * static_cast<std::size_t>(given.channels));
    norm_groups(given, begin, end, work.data());
  });
}

void gate_backward(const GateGradient& given, int threads) {
  with_threads(given.groups, given.groups * given.group_rows * given.channels, threads, [&](std::int64_t begin, std::int64_t end) {
    std::vector<float> work(2 * static_cast<std::size_t>(given.channels));
    gate_groups(given, begin, end, work.data());
  });
}

}  // namespace everface::cpu
