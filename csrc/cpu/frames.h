// The last steps of a decoder: a warp of its frames by a flow that is a sum of fields, and bytes.
#pragma once

#include "simd.h"

namespace everface::cpu {

// Frames [3, T, H, W] of any strides, in elements.
struct Video {
  const void* data;
  Type type;
  std::int64_t channel, frame, row, column;
  int frames, height, width;
};

// to[t, y, x] = frames[t] at (x - W/2 u, y - H/2 v), where (u, v) = sum over k of motion[k, t] * fields[k, y, x]: by Lanczos' window
// of three pixels; beyond the border its pixels go on. fields [K, H, W, 2] and motion [K, T] float32, to [T, H, W, 3] float32, all without gaps.
void warp_frames(const Video& video, const float* fields, const float* motion, int count, float* to, int threads);

// to[t, y, x, c] = trunc((clamp(x, -1, 1) + 1) * 127.5), [T, H, W, 3] without gaps.
void to_rgb(const Video& video, std::uint8_t* to, int threads);

}  // namespace everface::cpu
