#include "frames.h"

#include <cstring>
#include <memory>

#include "parallel.h"

namespace everface::cpu {
namespace {

#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are arguments of inlined functions only
#endif

using Pixel = float __attribute__((vector_size(16)));       // red, green, blue and nothing
using FourPixels = float __attribute__((vector_size(64)));  // side by side
constexpr int kPixel = 4;                                   // floats of it

EVERFACE_INLINE int within(int at, int size) { return at < 0 ? 0 : at < size ? at : size - 1; }

// Of each pixel of a row, where its first source pixel is, and the weights of that and the three behind it, across and down.
struct Taps {
  std::unique_ptr<float[]> flow, weight;
  std::unique_ptr<int[]> first;

  explicit Taps(int width) : flow(new float[2 * static_cast<std::size_t>(width)]), weight(new float[8 * static_cast<std::size_t>(width)]),
                             first(new int[2 * static_cast<std::size_t>(width)]) {}
};

EVERFACE_INLINE float near(float x) { return (1.25f * x - 2.25f) * x * x + 1.0f; }  // of Keys' function with a = -0.75, within a pixel
EVERFACE_INLINE float far(float x) { return ((-0.75f * x + 3.75f) * x - 6.0f) * x + 3.0f; }  // and beyond

// `at` is no farther than the size of the frame from it; a NaN is before it.
EVERFACE_INLINE void taps_at(float at, float size, int* first, float* weight) {
  at = at > -size ? at : -size;
  at = at < 2.0f * size ? at : 2.0f * size;
  const int towards_zero = static_cast<int>(at), whole = towards_zero - (at < static_cast<float>(towards_zero));
  const float part = at - static_cast<float>(whole);
  *first = whole - 1;
  weight[0] = far(part + 1.0f);
  weight[1] = near(part);
  weight[2] = near(1.0f - part);
  weight[3] = far(2.0f - part);
}

template <class T>
EVERFACE_INLINE void interleave_row(const T* from, std::int64_t channel, std::int64_t column, int width, float* to) {
  for (int x = 0; x < width; ++x) {
    for (int c = 0; c < 3; ++c) to[kPixel * x + c] = load(from[c * channel + x * column]);
    to[kPixel * x + 3] = 0;  // it is computed with: what lay there could be denormal, and slow
  }
}

EVERFACE_CLONES void interleave(const Video& v, std::int64_t first, std::int64_t last, float* to) {
  for (std::int64_t n = first; n < last; ++n) {
    const std::int64_t at = n / v.height * v.frame + n % v.height * v.row;
    if (v.type == Type::float32)
      interleave_row(static_cast<const float*>(v.data) + at, v.channel, v.column, v.width, to + n * v.width * kPixel);
    else
      interleave_row(static_cast<const std::uint16_t*>(v.data) + at, v.channel, v.column, v.width, to + n * v.width * kPixel);
  }
}

// The sum of 4 x 4 pixels from column x of `rows`.
EVERFACE_INLINE Pixel sample(const float* const* rows, int x, int width, const float* across, const float* down) {
  FourPixels sum;
  if (x >= 0 && x + 4 <= width) {
    FourPixels four[4];
    for (int j = 0; j < 4; ++j) std::memcpy(&four[j], rows[j] + kPixel * x, sizeof four[j]);
    sum = (four[0] * down[0] + four[1] * down[1]) + (four[2] * down[2] + four[3] * down[3]);
  } else {
    Pixel column[4];
    for (int i = 0; i < 4; ++i) {
      column[i] = Pixel{};
      for (int j = 0; j < 4; ++j) {
        Pixel one;
        std::memcpy(&one, rows[j] + kPixel * within(x + i, width), sizeof one);
        column[i] += one * down[j];
      }
    }
    std::memcpy(&sum, column, sizeof sum);
  }
  Pixel column[4];
  std::memcpy(column, &sum, sizeof sum);
  return (column[0] * across[0] + column[1] * across[1]) + (column[2] * across[2] + column[3] * across[3]);
}

// Row y of one frame.
EVERFACE_CLONES void warp_row(const float* frame, const float* fields, const float* motion, int motions, int frames, int y, int height, int width,
                              const Taps& taps, float* to) {
  const std::int64_t field = static_cast<std::int64_t>(height) * width * 2;
  float *flow = taps.flow.get(), *weight = taps.weight.get();
  int* first = taps.first.get();
  std::memset(flow, 0, sizeof(float) * 2 * static_cast<std::size_t>(width));
  for (int k = 0; k < motions; ++k) {
    const float* from = fields + k * field + static_cast<std::int64_t>(y) * width * 2;
    const float much = motion[k * frames];
#pragma omp simd
    for (int i = 0; i < 2 * width; ++i) flow[i] += much * from[i];
  }
  const float columns = static_cast<float>(width), rows = static_cast<float>(height);
#pragma omp simd
  for (int x = 0; x < width; ++x) {
    taps_at(static_cast<float>(x) - 0.5f * columns * flow[2 * x], columns, first + 2 * x, weight + 8 * x);
    taps_at(static_cast<float>(y) - 0.5f * rows * flow[2 * x + 1], rows, first + 2 * x + 1, weight + 8 * x + 4);
  }
  for (int x = 0; x < width; ++x) {
    const float* four_rows[4];
    for (int j = 0; j < 4; ++j) four_rows[j] = frame + static_cast<std::int64_t>(within(first[2 * x + 1] + j, height)) * width * kPixel;
    const Pixel pixel = sample(four_rows, first[2 * x], width, weight + 8 * x, weight + 8 * x + 4);
    for (int c = 0; c < 3; ++c) to[3 * x + c] = pixel[c];
  }
}

template <class T>
EVERFACE_INLINE void bytes_of_row(const T* from, std::int64_t channel, std::int64_t column, int width, std::uint8_t* to) {
  const auto byte = [](float x) {
    x = x > -1.0f ? x : -1.0f;
    x = x < 1.0f ? x : 1.0f;
    return static_cast<std::uint8_t>(static_cast<int>((x + 1.0f) * 127.5f));
  };
  if (channel == 1 && column == 3) {
#pragma omp simd
    for (int i = 0; i < 3 * width; ++i) to[i] = byte(load(from[i]));
  } else {
    for (int c = 0; c < 3; ++c)
      for (int x = 0; x < width; ++x) to[3 * x + c] = byte(load(from[c * channel + x * column]));
  }
}

EVERFACE_CLONES void bytes(const Video& v, std::int64_t first, std::int64_t last, std::uint8_t* to) {
  for (std::int64_t n = first; n < last; ++n) {
    const std::int64_t at = n / v.height * v.frame + n % v.height * v.row;
    std::uint8_t* row = to + n * v.width * 3;
    if (v.type == Type::float32)
      bytes_of_row(static_cast<const float*>(v.data) + at, v.channel, v.column, v.width, row);
    else
      bytes_of_row(static_cast<const std::uint16_t*>(v.data) + at, v.channel, v.column, v.width, row);
  }
}

}  // namespace

void warp_frames(const Video& video, const float* fields, const float* motion, int count, float* to, int threads) {
  const std::int64_t rows = static_cast<std::int64_t>(video.frames) * video.height, row = static_cast<std::int64_t>(video.width) * kPixel;
  const std::unique_ptr<float[]> pixels(new float[static_cast<std::size_t>(rows * row)]);
  parallel(rows, threads, [&](int, std::int64_t first, std::int64_t last) { interleave(video, first, last, pixels.get()); });
  // All frames of a row of fields at once: these are larger than the cache.
  parallel(video.height, threads, [&](int, std::int64_t first, std::int64_t last) {
    const Taps taps(video.width);
    for (std::int64_t y = first; y < last; ++y)
      for (int t = 0; t < video.frames; ++t)
        warp_row(pixels.get() + t * video.height * row, fields, motion + t, count, video.frames, static_cast<int>(y), video.height, video.width, taps,
                 to + (static_cast<std::int64_t>(t) * video.height + y) * video.width * 3);
  });
}

void to_rgb(const Video& video, std::uint8_t* to, int threads) {
  parallel(static_cast<std::int64_t>(video.frames) * video.height, threads, [&](int, std::int64_t first, std::int64_t last) { bytes(video, first, last, to); });
}

}  // namespace everface::cpu
