// RMS norm over the channels of each pixel and SiLU, in one pass over memory, and its gradient: what a video VAE does before each convolution.
#pragma once

#include "simd.h"

namespace everface::cpu {

// y = silu(x * sqrt(C) / max(|x|, 1e-12) * gamma). x, y [rows, C] without gaps, of one type; gamma [C] float32. Computed in float32.
void norm_silu(const void* x, const float* gamma, void* y, Type type, std::int64_t rows, int channels, int threads);

// From grad_y [rows, C]: grad_x [rows, C], both of x's type, and grad_gamma [C] float32.
void norm_silu_backward(const void* x, const float* gamma, const void* grad_y, void* grad_x, float* grad_gamma, Type type, std::int64_t rows,
                        int channels, int threads);

}  // namespace everface::cpu
