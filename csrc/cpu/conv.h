// Convolutions of a causal video decoder in bfloat16 on the matrix unit of Intel's server CPUs (AMX): norm and SiLU before, residual after,
// without a copy that joins frames, pads or upsamples. Frame by frame, so that what the norm writes is read from the second cache.
#pragma once

#include <cstdint>

namespace everface::cpu {

// One frame of z is x's (side of them lie in a pixel), or silu(norm(x) * gamma), with zeros around it.
// taps 3: y[t] = bias + sum over i, and over space x space, of W[i] z[t - 2 + i] [+ residual]; taps 1 and up 2: y of twice the size each way, each of
// its four phases a window of 2 x 2 pixels of z, which is what 3 x 3 pixels of the nearest neighbors' are.
struct Convolution {
  const std::uint16_t* x;  // [frames / side, height, width, side * in]
  const float* gamma;      // [in]: norm and SiLU first; or null
  std::uint16_t* past;     // [taps - 1, height, width, in] of z, before these frames; becomes the last of z
  const std::uint16_t *packed, *bias, *residual;  // bias [out], residual like y; or null
  std::uint16_t* y;        // [frames, height * up, width * up, out]
  int frames, height, width, in, out, taps, space, up, side;
  int group;  // pixels of a row that are one row of the GEMM, with one weight for all of them: where there are few channels. 1 if up is 2
};

// `width` is a multiple of `group`, and at least 16 times it. `packed`: [phases][group * out / 16][taps][window][tiles][16][16][2], the values of a
// window's row padded with zeros to tiles of 32, see kernels/video/packed_conv.py.
void convolve(const Convolution& given, int threads);

}  // namespace everface::cpu
