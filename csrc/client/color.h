// RGB24 to the other formats. NV12 and I420: BT.709, limited range, chroma at the centre of its four pixels.
#pragma once

#include "everface.h"

namespace everface::client {

// Writes `width` x `height` pixels of RGB without gaps into `image`, of the same size, whose planes are all there.
void convert(const uint8_t* rgb, const ef_image& image);
// Planes of `format`; the rows and bytes of row of plane `index`, at the least.
int plane_count(int format);
size_t plane_rows(int format, int index, uint32_t height);
size_t row_bytes(int format, int index, uint32_t width);

}  // namespace everface::client
