#include "norm_silu.h"

#include <cmath>
#include <vector>

#include "parallel.h"

namespace everface::cpu {
namespace {

// Rows are taken in blocks that fit the first cache, and a block in passes over all its elements: a row by itself is often narrower than a
// register, and its sum, root and quotient would be waited for.
constexpr int kElements = 1024, kRows = 64;

EVERFACE_INLINE int block_rows(int channels) { return channels * kRows <= kElements ? kRows : channels < kElements ? kElements / channels : 1; }

// factor[r] = sqrt(C) / |x[r]|.
template <class T>
EVERFACE_INLINE void row_factors(const T* x, float* factor, int rows, int channels) {
  for (int r = 0; r < rows; ++r) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int c = 0; c < channels; ++c) sum += load(x[r * channels + c]) * load(x[r * channels + c]);
    factor[r] = sum;
  }
  const float root = std::sqrt(static_cast<float>(channels));
#pragma omp simd
  for (int r = 0; r < rows; ++r) {
    const float norm = std::sqrt(factor[r]);
    factor[r] = root / (norm < 1e-12f ? 1e-12f : norm);
  }
}

template <class T>
EVERFACE_INLINE void forward_rows(const T* x, const float* gamma, T* y, std::int64_t rows, int channels, float* scale) {
  float factor[kRows];
  const int block = block_rows(channels);
  for (std::int64_t first = 0; first < rows; first += block) {
    const int count = static_cast<int>(rows - first < block ? rows - first : block), size = count * channels;
    const T* in = x + first * channels;
    T* out = y + first * channels;
    row_factors(in, factor, count, channels);
    for (int r = 0; r < count; ++r)
#pragma omp simd
      for (int c = 0; c < channels; ++c) scale[r * channels + c] = factor[r] * gamma[c];
#pragma omp simd
    for (int i = 0; i < size; ++i) {
      const float n = load(in[i]) * scale[i];
      store(out[i], n / (1.0f + exponential(-n)));
    }
  }
}

// `work`: seven times the elements of a block.
template <class T>
EVERFACE_INLINE void backward_rows(const T* x, const float* gamma, const T* grad_y, T* grad_x, double* grad_gamma, std::int64_t rows, int channels,
                                   float* work) {
  float factor[kRows], mean[kRows];
  const int block = block_rows(channels), most = block * channels;
  float *gammas = work, *factors = gammas + most, *hats = factors + most, *grads = hats + most, *dots = grads + most, *parts = dots + most,
        *sums = parts + most;
  for (int r = 0; r < block; ++r)
    for (int c = 0; c < channels; ++c) gammas[r * channels + c] = gamma[c];
  for (std::int64_t first = 0; first < rows; first += block) {
    const int count = static_cast<int>(rows - first < block ? rows - first : block), size = count * channels;
    const T *in = x + first * channels, *up = grad_y + first * channels;
    T* out = grad_x + first * channels;
    row_factors(in, factor, count, channels);
    for (int r = 0; r < count; ++r)
#pragma omp simd
      for (int c = 0; c < channels; ++c) factors[r * channels + c] = factor[r];
#pragma omp simd
    for (int i = 0; i < size; ++i) {
      const float hat = load(in[i]) * factors[i], n = hat * gammas[i], s = 1.0f / (1.0f + exponential(-n));
      const float grad = load(up[i]) * s * (1.0f + n * (1.0f - s));
      hats[i] = hat;
      grads[i] = grad * gammas[i];
      dots[i] = grad * gammas[i] * hat;
      parts[i] = grad * hat;
    }
    for (int r = 0; r < count; ++r) {
      float dot = 0;
#pragma omp simd reduction(+ : dot)
      for (int c = 0; c < channels; ++c) dot += dots[r * channels + c];
      mean[r] = dot / static_cast<float>(channels);
    }
    for (int r = 0; r < count; ++r)
#pragma omp simd
      for (int c = 0; c < channels; ++c) dots[r * channels + c] = mean[r];
#pragma omp simd
    for (int i = 0; i < size; ++i) store(out[i], factors[i] * (grads[i] - hats[i] * dots[i]));
    for (int c = 0; c < channels; ++c) sums[c] = 0;
    for (int r = 0; r < count; ++r)
#pragma omp simd
      for (int c = 0; c < channels; ++c) sums[c] += parts[r * channels + c];
    for (int c = 0; c < channels; ++c) grad_gamma[c] += static_cast<double>(sums[c]);
  }
}

// The widths of the models that ship, so that their loops are unrolled; any other works too.
#define EVERFACE_WIDTHS(call) \
  switch (channels) {         \
    case 16: call(16); break; \
    case 24: call(24); break; \
    case 32: call(32); break; \
    case 48: call(48); break; \
    case 64: call(64); break; \
    case 72: call(72); break; \
    case 96: call(96); break; \
    default: call(channels);  \
  }

EVERFACE_CLONES void forward_float32(const float* x, const float* gamma, float* y, std::int64_t rows, int channels, float* work) {
#define EVERFACE_CALL(width) forward_rows(x, gamma, y, rows, width, work)
  EVERFACE_WIDTHS(EVERFACE_CALL)
}

EVERFACE_CLONES void forward_bfloat16(const std::uint16_t* x, const float* gamma, std::uint16_t* y, std::int64_t rows, int channels, float* work) {
  EVERFACE_WIDTHS(EVERFACE_CALL)
#undef EVERFACE_CALL
}

EVERFACE_CLONES void backward_float32(const float* x, const float* gamma, const float* grad_y, float* grad_x, double* grad_gamma, std::int64_t rows,
                                      int channels, float* work) {
  backward_rows(x, gamma, grad_y, grad_x, grad_gamma, rows, channels, work);  // not unrolled, as a compiler takes seconds for each width
}

EVERFACE_CLONES void backward_bfloat16(const std::uint16_t* x, const float* gamma, const std::uint16_t* grad_y, std::uint16_t* grad_x,
                                       double* grad_gamma, std::int64_t rows, int channels, float* work) {
#define EVERFACE_CALL(width) backward_rows(x, gamma, grad_y, grad_x, grad_gamma, rows, width, work)
  EVERFACE_WIDTHS(EVERFACE_CALL)
#undef EVERFACE_CALL
}

}  // namespace

void norm_silu(const void* x, const float* gamma, void* y, Type type, std::int64_t rows, int channels, int threads) {
  parallel(rows, threads, [&](int, std::int64_t begin, std::int64_t end) {
    const std::int64_t at = begin * channels;
    std::vector<float> work(static_cast<std::size_t>(block_rows(channels)) * static_cast<std::size_t>(channels));
    if (type == Type::float32)
      forward_float32(static_cast<const float*>(x) + at, gamma, static_cast<float*>(y) + at, end - begin, channels, work.data());
    else
      forward_bfloat16(static_cast<const std::uint16_t*>(x) + at, gamma, static_cast<std::uint16_t*>(y) + at, end - begin, channels, work.data());
  });
}

void norm_silu_backward(const void* x, const float* gamma, const void* grad_y, void* grad_x, float* grad_gamma, Type type, std::int64_t rows,
                        int channels, int threads) {
  const auto width = static_cast<std::size_t>(channels);
  std::vector<double> sums(width * static_cast<std::size_t>(threads));
  parallel(rows, threads, [&](int thread, std::int64_t begin, std::int64_t end) {
    const std::int64_t at = begin * channels;
    std::vector<float> work(7 * static_cast<std::size_t>(block_rows(channels)) * width);
    double* own = sums.data() + width * static_cast<std::size_t>(thread);
    if (type == Type::float32)
      backward_float32(static_cast<const float*>(x) + at, gamma, static_cast<const float*>(grad_y) + at, static_cast<float*>(grad_x) + at, own, end - begin,
                       channels, work.data());
    else
      backward_bfloat16(static_cast<const std::uint16_t*>(x) + at, gamma, static_cast<const std::uint16_t*>(grad_y) + at,
                        static_cast<std::uint16_t*>(grad_x) + at, own, end - begin, channels, work.data());
  });
  for (std::size_t c = 0; c < width; ++c) {
    double sum = 0;
    for (int thread = 0; thread < threads; ++thread) sum += sums[width * static_cast<std::size_t>(thread) + c];
    grad_gamma[c] = static_cast<float>(sum);
  }
}

}  // namespace everface::cpu
