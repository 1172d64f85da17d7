// RGB24 to the other formats. NV12 and I420: BT.709, limited range, chroma at the centre of its four pixels.
#pragma once

#include "everface.h"

namespace everface::client {

// Coefficients of BT.709 in limited range, in 1/32768.
constexpr int kYR = 5983, kYG = 20127, kYB = 2032;     // 219/255 * (.2126, .7152, .0722)
constexpr int kUR = -3298, kUG = -11094, kUB = 14392;  // 224/255 * 0.5 * B-Y
constexpr int kVR = 14392, kVG = -13073, kVB = -1319;  // 224/255 * 0.5 * R-Y
constexpr int kHalf = 1 << 14;

// Writes `width` x `height` pixels of RGB without gaps into `image`, of the same size, whose planes are all there.
void convert(const uint8_t* rgb, const ef_image& image);
// Planes of `format`; the rows and bytes of row of plane `index`, at the least.
int plane_count(int format);
size_t plane_rows(int format, int index, uint32_t height);
size_t row_bytes(int format, int index, uint32_t width);

}  // namespace everface::client
