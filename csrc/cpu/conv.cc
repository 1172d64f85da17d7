#include "conv.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "parallel.h"

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#include "amx_tiles.h"
#include "simd.h"

namespace everface::cpu {
namespace {

constexpr int kMostTaps = 3;

// How z lies in memory, and what a tile of it is: the window's pixels of one row are side by side, so they are one long row of the GEMM.
struct Layout {
  int border, window, phases, depth;  // depth: tiles of a window's row
  std::int64_t row;                   // values of a row of z

  explicit Layout(const Convolution& g)
      : border(g.up == 2 ? 1 : g.space / 2),
        window(g.up == 2 ? 2 : g.space),
        phases(g.up * g.up),
        depth(((window + g.group - 1) * g.in + kDepth - 1) / kDepth),
        row(aligned(static_cast<std::int64_t>(g.width + 2 * border) * g.in)) {}

  // A tile's row is 64 bytes, and half as fast where it crosses a line of the cache.
  static std::int64_t aligned(std::int64_t values) { return (values + kDepth - 1) / kDepth * kDepth; }

  // The last tile of a window reads up to kDepth values beyond it, which meet weights of zero but must be finite.
  std::int64_t frame(int rows) const { return (rows + 2 * border) * row + kDepth; }
};

// The rows of a frame that one thread makes, with the frames of z that they need, each in its turn.
struct Part {
  int begin, end;
  std::uint16_t* z;
  std::int64_t frame;

  std::uint16_t* at(int index, int taps) const { return z + index % taps * frame; }
};

// Where rows of z begin and end that are within the image.
struct Inside {
  int begin, end;

  Inside(const Convolution& g, const Layout& l, const Part& part) : begin(std::max(0, part.begin - l.border)), end(std::min(g.height, part.end + l.border)) {}
};

void clear_border(const Convolution& g, const Layout& l, const Part& part, std::uint16_t* z) {
  const int rows = part.end - part.begin + 2 * l.border;
  const Inside inside(g, l, part);
  for (int r = 0; r < rows; ++r) {
    const int image = part.begin - l.border + r;
    std::uint16_t* to = z + r * l.row;
    if (image < inside.begin || image >= inside.end) {
      std::fill_n(to, l.row, std::uint16_t{0});
    } else {
      std::fill_n(to, l.border * g.in, std::uint16_t{0});
      const std::int64_t end = static_cast<std::int64_t>(l.border + g.width) * g.in;
      std::fill_n(to + end, l.row - end, std::uint16_t{0});
    }
  }
  std::fill_n(z + rows * l.row, kDepth, std::uint16_t{0});
}

std::uint16_t* image_row(const Convolution& g, const Layout& l, const Part& part, std::uint16_t* z, int y) {
  return z + (y - part.begin + l.border) * l.row + l.border * g.in;
}

EVERFACE_AMX_INLINE __m512 sum_in_all(__m512 x) {
  x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0x4e));
  x = _mm512_add_ps(x, _mm512_shuffle_f32x4(x, x, 0xb1));
  x = _mm512_add_ps(x, _mm512_permute_ps(x, 0x4e));
  return _mm512_add_ps(x, _mm512_permute_ps(x, 0xb1));
}

EVERFACE_AMX_INLINE __m512 silu(__m512 n) {
  const __m512 e = weight_of(_mm512_min_ps(_mm512_set1_ps(126.0f), _mm512_mul_ps(n, _mm512_set1_ps(-1.4426950408889634f))));
  return _mm512_mul_ps(n, _mm512_rcp14_ps(_mm512_add_ps(_mm512_set1_ps(1.0f), e)));
}

// The pixels of a row; `gamma` is sqrt(channels) times the norm's. Roots and quotients have 14 bits, as the result keeps 8.
EVERFACE_AMX void norm_silu_row(const std::uint16_t* x, const float* gamma, std::uint16_t* y, int pixels, int channels) {
  const __mmask16 rest = first_16(channels % kSide);
  const int whole = channels / kSide * kSide;
  for (int n = 0; n < pixels; ++n, x += channels, y += channels) {
    __m512 sum = _mm512_setzero_ps();
    for (int c = 0; c < channels; c += kSide) {
      const __m512 v = load_16(x + c, c < whole ? __mmask16{0xffff} : rest);
      sum = _mm512_fmadd_ps(v, v, sum);
    }
    const __m512 factor = _mm512_rsqrt14_ps(_mm512_max_ps(_mm512_set1_ps(1e-24f), sum_in_all(sum)));
    for (int c = 0; c < channels; c += kSide) {
      const __mmask16 valid = c < whole ? __mmask16{0xffff} : rest;
      const __m512 v = _mm512_mul_ps(_mm512_mul_ps(load_16(x + c, valid), factor), _mm512_maskz_loadu_ps(valid, gamma + c));
      _mm256_mask_storeu_epi16(y + c, valid, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(silu(v))));
    }
  }
}

// Frame t of x into z.
void fill(const Convolution& g, const Layout& l, const Part& part, int t, std::uint16_t* z, const float* gamma) {
  const Inside inside(g, l, part);
  const std::int64_t pixel = static_cast<std::int64_t>(g.side) * g.in, values = static_cast<std::int64_t>(g.width) * g.in;
  const auto size = sizeof(std::uint16_t);
  for (int y = inside.begin; y < inside.end; ++y) {
    const std::uint16_t* from = g.x + (static_cast<std::int64_t>(t / g.side) * g.height + y) * g.width * pixel + t % g.side * g.in;
    std::uint16_t* to = image_row(g, l, part, z, y);
    if (g.gamma) {
      norm_silu_row(from, gamma, to, g.width, g.in);
    } else if (g.side == 1) {
      std::memcpy(to, from, static_cast<std::size_t>(values) * size);
    } else {
      for (int x = 0; x < g.width; ++x) std::memcpy(to + x * g.in, from + x * pixel, static_cast<std::size_t>(g.in) * size);
    }
  }
}

void load_past(const Convolution& g, const Layout& l, const Part& part) {
  const Inside inside(g, l, part);
  const std::int64_t values = static_cast<std::int64_t>(g.width) * g.in;
  for (int i = 0; i < g.taps - 1; ++i)
    for (int y = inside.begin; y < inside.end; ++y)
      std::memcpy(image_row(g, l, part, part.at(i, g.taps), y), g.past + (static_cast<std::int64_t>(i) * g.height + y) * values,
                  static_cast<std::size_t>(values) * sizeof(std::uint16_t));
}

void store_past(const Convolution& g, const Layout& l, const Part& part) {
  const std::int64_t values = static_cast<std::int64_t>(g.width) * g.in;
  for (int i = 0; i < g.taps - 1; ++i)
    for (int y = part.begin; y < part.end; ++y)
      std::memcpy(g.past + (static_cast<std::int64_t>(i) * g.height + y) * values, image_row(g, l, part, part.at(g.frames + i, g.taps), y),
                  static_cast<std::size_t>(values) * sizeof(std::uint16_t));
}

// What one tile of output is made of: the addresses of its first window in each tap's frame, and where its pixels go.
struct Site {
  std::int64_t z, y;  // offsets
};

// Two by two tiles: 32 pixels and 32 output channels. w, and w1 of the next 16 channels, in the order of the loops.
EVERFACE_AMX_INLINE void multiply_square(const Convolution& g, const Layout& l, const std::uint16_t* const* frames, const Site* site, const std::uint16_t* w,
                                         const std::uint16_t* w1, float* sums) {
  zero_sums();
  for (int tap = 0; tap < g.taps; ++tap)
    for (int r = 0; r < l.window; ++r) {
      const std::uint16_t *a = frames[tap] + site[0].z + r * l.row, *b = frames[tap] + site[1].z + r * l.row;
      for (int k = 0; k < l.depth; ++k, w += kTile, w1 += kTile) {
        _tile_loadd(4, a + k * kDepth, g.group * g.in * 2);
        _tile_loadd(6, w, 64);
        _tile_loadd(7, w1, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, b + k * kDepth, g.group * g.in * 2);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  store_square(sums);
}

// Four tiles one below the other: 64 pixels and 16 output channels.
EVERFACE_AMX_INLINE void multiply_column(const Convolution& g, const Layout& l, const std::uint16_t* const* frames, const Site* site, const std::uint16_t* w,
                                         float* sums) {
  zero_sums();
  for (int tap = 0; tap < g.taps; ++tap)
    for (int r = 0; r < l.window; ++r) {
      const std::uint16_t* z = frames[tap] + r * l.row;
      for (int k = 0; k < l.depth; ++k, w += kTile) {
        _tile_loadd(6, w, 64);
        _tile_loadd(4, z + site[0].z + k * kDepth, g.group * g.in * 2);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, z + site[1].z + k * kDepth, g.group * g.in * 2);
        _tile_dpbf16ps(1, 5, 6);
        _tile_loadd(4, z + site[2].z + k * kDepth, g.group * g.in * 2);
        _tile_dpbf16ps(2, 4, 6);
        _tile_loadd(5, z + site[3].z + k * kDepth, g.group * g.in * 2);
        _tile_dpbf16ps(3, 5, 6);
      }
    }
  _tile_stored(0, sums, kSide * 4);
  _tile_stored(1, sums + kSide * kSide, kSide * 4);
  _tile_stored(2, sums + 2 * kSide * kSide, kSide * 4);
  _tile_stored(3, sums + 3 * kSide * kSide, kSide * 4);
}

// 16 rows of `sums`, which are `stride` apart, and 16 channels from `first` on: bias, residual, one rounding.
EVERFACE_AMX_INLINE void store_tile(const Convolution& g, const float* biases, const float* sums, int stride, std::int64_t y, int first) {
  const __mmask16 valid = first_16(g.group * g.out - first);
  const __m512 bias = _mm512_maskz_loadu_ps(valid, biases + first);
  const std::int64_t pixel = static_cast<std::int64_t>(g.up) * g.group * g.out;
  for (int r = 0; r < kSide; ++r) {
    __m512 sum = _mm512_add_ps(_mm512_load_ps(sums + r * stride), bias);
    const std::int64_t at = y + r * pixel + first;
    if (g.residual) sum = _mm512_add_ps(sum, load_16(g.residual + at, valid));
    _mm256_mask_storeu_epi16(g.y + at, valid, reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(sum)));
  }
}

// One phase of frame t. `sites`: its tiles of 16 pixels; their number is rounded up to four by repeating the last.
EVERFACE_AMX void multiply_frame(const Convolution& g, const Layout& l, const std::uint16_t* const* frames, const std::vector<Site>& sites,
                                 const std::uint16_t* packed, const float* biases) {
  const Tiles tiles;
  alignas(64) float sums[4 * kSide * kSide];
  const std::int64_t channels16 = static_cast<std::int64_t>(g.taps) * l.window * l.depth * kTile;
  const int out = g.group * g.out;
  int first = 0;
  for (; first + kSide < out; first += kBlock, packed += 2 * channels16)
    for (std::size_t n = 0; n < sites.size(); n += 2) {
      multiply_square(g, l, frames, &sites[n], packed, packed + channels16, sums);
      for (std::size_t tile = 0; tile < 4; ++tile)
        store_tile(g, biases, sums + tile / 2 * kSide * kBlock + tile % 2 * kSide, kBlock, sites[n + tile / 2].y, first + static_cast<int>(tile % 2) * kSide);
    }
  if (first >= out) return;
  for (std::size_t n = 0; n < sites.size(); n += 4) {
    multiply_column(g, l, frames, &sites[n], packed, sums);
    for (std::size_t tile = 0; tile < 4; ++tile) store_tile(g, biases, sums + tile * kSide * kSide, kSide, sites[n + tile].y, first);
  }
}

// The tiles of a part of frame 0. The last of a row may overlap the one before: its pixels are made twice, the same.
void find_sites(const Convolution& g, const Layout& l, const Part& part, int phase, std::vector<Site>& sites) {
  sites.clear();
  const int down = phase / g.up, right = phase % g.up;
  for (int y = part.begin; y < part.end; ++y)
    for (int x = 0; x < g.width; x += kSide * g.group) {
      const int from = std::min(x, g.width - kSide * g.group);
      sites.push_back({(y - part.begin + down) * l.row + (from + right) * static_cast<std::int64_t>(g.in),
                       ((static_cast<std::int64_t>(y) * g.up + down) * g.width * g.up + from * g.up + right) * g.out});
    }
  while (sites.size() % 4) sites.push_back(sites.back());
}

void convolve_part(const Convolution& g, const Layout& l, const Part& part) {
  std::vector<float> gamma(static_cast<std::size_t>(g.in)), biases(static_cast<std::size_t>(g.group * g.out));
  for (std::size_t c = 0; g.gamma && c < gamma.size(); ++c) gamma[c] = std::sqrt(static_cast<float>(g.in)) * g.gamma[c];
  for (std::size_t n = 0; g.bias && n < biases.size(); ++n) biases[n] = load(g.bias[n % static_cast<std::size_t>(g.out)]);
  std::vector<std::vector<Site>> sites(static_cast<std::size_t>(l.phases));
  for (int phase = 0; phase < l.phases; ++phase) find_sites(g, l, part, phase, sites[static_cast<std::size_t>(phase)]);
  const std::int64_t frame = static_cast<std::int64_t>(g.height) * g.width * g.up * g.up * g.out;
  const std::int64_t packed = static_cast<std::int64_t>((g.group * g.out + kSide - 1) / kSide) * g.taps * l.window * l.depth * kTile;
  for (int t = 0; t < g.frames; ++t) {
    fill(g, l, part, t, part.at(t + g.taps - 1, g.taps), gamma.data());
    const std::uint16_t* frames[kMostTaps];
    for (int i = 0; i < g.taps; ++i) frames[i] = part.at(t + i, g.taps);
    Convolution now = g;
    now.y += t * frame;
    if (g.residual) now.residual += t * frame;
    for (int phase = 0; phase < l.phases; ++phase)
      multiply_frame(now, l, frames, sites[static_cast<std::size_t>(phase)], g.packed + phase * packed, biases.data());
  }
  store_past(g, l, part);
}

}  // namespace

void convolve(const Convolution& given, int threads) {
  static thread_local std::vector<std::uint16_t> kept;  // memory that is new has to be mapped first
  const Layout l(given);
  const int parts = std::max(1, std::min(threads, given.height / 4));  // a part makes its neighbors' rows of z again
  const std::int64_t frame = l.frame((given.height + parts - 1) / parts);
  kept.resize(static_cast<std::size_t>(parts * given.taps * frame + kDepth));
  std::uint16_t* z = kept.data() + (64 - reinterpret_cast<std::uintptr_t>(kept.data()) % 64) / sizeof(std::uint16_t);
  const auto each = [&](const auto& work) {
    parallel(parts, parts, [&](int, std::int64_t begin, std::int64_t end) {
      for (int n = static_cast<int>(begin); n < end; ++n)
        work(Part{given.height * n / parts, given.height * (n + 1) / parts, z + n * given.taps * frame, frame});
    });
  };
  each([&](const Part& part) {  // all of the past is read before any of it is written
    for (int i = 0; i < given.taps; ++i) clear_border(given, l, part, part.at(i, given.taps));
    load_past(given, l, part);
  });
  each([&](const Part& part) { convolve_part(given, l, part); });
}

}  // namespace everface::cpu

#else

namespace everface::cpu {

void convolve(const Convolution&, int) {}

}  // namespace everface::cpu

#endif
