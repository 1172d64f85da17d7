#include "frames.h"

#include <cmath>
#include <cstring>
#include <memory>

#include "parallel.h"

namespace everface::cpu {
namespace {

#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are arguments of inlined functions only
#endif

using Pixel = float __attribute__((vector_size(16)));  // red, green, blue and nothing
using TwoPixels = float __attribute__((vector_size(32)));
using FourPixels = float __attribute__((vector_size(64)));  // side by side
constexpr int kPixel = 4;               // floats of it
constexpr int kTaps = 6, kWeights = 8;  // source pixels in each direction; floats of their weights
constexpr double kPi = 3.14159265358979323846;
constexpr int kPhases = 512;  // of a table of these, between whose entries they are interpolated
using Weights = float __attribute__((vector_size(4 * kWeights)));

EVERFACE_INLINE int within(int at, int size) { return at < 0 ? 0 : at < size ? at : size - 1; }

// Weights of the six source pixels about a place that is n / kPhases to the right of the third of them, n = 0 to kPhases: Lanczos' window of three, their sum
// made one. A whole place is the pixel itself.
const float* lanczos() {
  static const std::unique_ptr<float[]> table = [] {
    std::unique_ptr<float[]> rows(new float[(kPhases + 1) * kWeights]());
    for (int n = 0; n <= kPhases; ++n) {
      double weight[kTaps], sum = 0;
      for (int i = 0; i < kTaps; ++i) {
        const double x = kPi * (i - 2 - static_cast<double>(n) / kPhases);
        weight[i] = x == 0 ? 1.0 : n % kPhases == 0 ? 0.0 : 3 * std::sin(x) * std::sin(x / 3) / (x * x);
        sum += weight[i];
      }
      for (int i = 0; i < kTaps; ++i) rows[n * kWeights + i] = static_cast<float>(weight[i] / sum);
    }
    return rows;
  }();
  return table.get();
}

// The first source pixel of a place, and the weights of that and of those behind it. `at` is no farther than the size of the frame from it; a NaN is before it.
EVERFACE_INLINE int taps_at(float at, float size, const float* table, float* weight) {
  at = at > -size ? at : -size;
  at = at < 2.0f * size ? at : 2.0f * size;
  const int towards_zero = static_cast<int>(at), whole = towards_zero - (at < static_cast<float>(towards_zero));
  const float phase = (at - static_cast<float>(whole)) * kPhases;
  const int below = static_cast<int>(phase) < kPhases ? static_cast<int>(phase) : kPhases - 1;
  Weights before, after;
  std::memcpy(&before, table + below * kWeights, sizeof before);
  std::memcpy(&after, table + (below + 1) * kWeights, sizeof after);
  before += (after - before) * (phase - static_cast<float>(below));
  std::memcpy(weight, &before, sizeof before);
  return whole - 2;
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

// The sum of 6 x 6 pixels of a frame from column x and row y.
EVERFACE_INLINE Pixel sample(const float* frame, int x, int y, int width, int height, const float* across, const float* down) {
  Pixel column[kTaps];
  if (x >= 0 && x + kTaps <= width && y >= 0 && y + kTaps <= height) {
    const float* row = frame + (static_cast<std::int64_t>(y) * width + x) * kPixel;
    FourPixels four{};
    TwoPixels two{};
#pragma GCC unroll 6
    for (int j = 0; j < kTaps; ++j) {
      FourPixels first;
      TwoPixels rest;
      std::memcpy(&first, row, sizeof first);
      std::memcpy(&rest, row + 4 * kPixel, sizeof rest);
      four += first * down[j];
      two += rest * down[j];
      row += static_cast<std::int64_t>(width) * kPixel;
    }
    std::memcpy(column, &four, sizeof four);
    std::memcpy(column + 4, &two, sizeof two);
  } else {
    for (int i = 0; i < kTaps; ++i) {
      column[i] = Pixel{};
      for (int j = 0; j < kTaps; ++j) {
        Pixel one;
        std::memcpy(&one, frame + (static_cast<std::int64_t>(within(y + j, height)) * width + within(x + i, width)) * kPixel, sizeof one);
        column[i] += one * down[j];
      }
    }
  }
  return (column[0] * across[0] + column[1] * across[1]) + (column[2] * across[2] + column[3] * across[3]) + (column[4] * across[4] + column[5] * across[5]);
}

// Row y of one frame. flow: room for two floats a pixel.
EVERFACE_CLONES void warp_row(const float* frame, const float* fields, const float* motion, int motions, int frames, int y, int height, int width,
                              const float* table, float* flow, float* to) {
  const std::int64_t field = static_cast<std::int64_t>(height) * width * 2;
  std::memset(flow, 0, sizeof(float) * 2 * static_cast<std::size_t>(width));
  for (int k = 0; k < motions; ++k) {
    const float* from = fields + k * field + static_cast<std::int64_t>(y) * width * 2;
    const float much = motion[k * frames];
#pragma omp simd
    for (int i = 0; i < 2 * width; ++i) flow[i] += much * from[i];
  }
  const float columns = static_cast<float>(width), rows = static_cast<float>(height);
  for (int x = 0; x < width; ++x) {
    Pixel pixel;
    if (flow[2 * x] == 0 && flow[2 * x + 1] == 0) {
      std::memcpy(&pixel, frame + (static_cast<std::int64_t>(y) * width + x) * kPixel, sizeof pixel);
    } else {
      float across[kWeights], down[kWeights];
      const int column = taps_at(static_cast<float>(x) - 0.5f * columns * flow[2 * x], columns, table, across);
      const int row = taps_at(static_cast<float>(y) - 0.5f * rows * flow[2 * x + 1], rows, table, down);
      pixel = sample(frame, column, row, width, height, across, down);
    }
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
  const float* table = lanczos();
  // All frames of a row of fields at once: these are larger than the cache.
  parallel(video.height, threads, [&](int, std::int64_t first, std::int64_t last) {
    const std::unique_ptr<float[]> flow(new float[2 * static_cast<std::size_t>(video.width)]);
    for (std::int64_t y = first; y < last; ++y)
      for (int t = 0; t < video.frames; ++t)
        warp_row(pixels.get() + t * video.height * row, fields, motion + t, count, video.frames, static_cast<int>(y), video.height, video.width, table,
                 flow.get(), to + (static_cast<std::int64_t>(t) * video.height + y) * video.width * 3);
  });
}

void to_rgb(const Video& video, std::uint8_t* to, int threads) {
  parallel(static_cast<std::int64_t>(video.frames) * video.height, threads, [&](int, std::int64_t first, std::int64_t last) { bytes(video, first, last, to); });
}

}  // namespace everface::cpu
