// Rows of color.cc by AVX2, bit for bit the same. Each does whole groups of pixels from the left and returns how many pixels it did.
#pragma once

#include <cstddef>
#include <cstdint>

namespace everface::client {

bool has_avx2();
size_t luma_avx2(const uint8_t* rgb, uint8_t* y, size_t width);
// An even number of pixels. interleaved: u and v alternate, from `u` on.
size_t chroma_avx2(const uint8_t* a, const uint8_t* b, uint8_t* u, uint8_t* v, size_t width, bool interleaved);
size_t bgra_avx2(const uint8_t* rgb, uint8_t* out, size_t width);

}  // namespace everface::client
