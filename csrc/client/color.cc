#include "color.h"

#include <cstring>

#include "color_avx2.h"

namespace everface::client {
namespace {

inline uint8_t luma(int r, int g, int b) { return static_cast<uint8_t>((kYR * r + kYG * g + kYB * b + kHalf + (16 << 15)) >> 15); }

void luma_row(const uint8_t* __restrict rgb, uint8_t* __restrict y, size_t width) {
  for (size_t x = has_avx2() ? luma_avx2(rgb, y, width) : 0; x < width; ++x) y[x] = luma(rgb[3 * x], rgb[3 * x + 1], rgb[3 * x + 2]);
}

// One row of chroma of two rows of pixels, which are the same row for the last one of an odd height. Step: 2 for NV12, 1 for I420.
void chroma_row(const uint8_t* __restrict a, const uint8_t* __restrict b, uint8_t* __restrict u, uint8_t* __restrict v, size_t width,
                size_t step) {
  const size_t done = has_avx2() ? chroma_avx2(a, b, u, v, width, step == 2) : 0;
  for (size_t x = done / 2; x < (width + 1) / 2; ++x) {
    const size_t left = 6 * x, right = 2 * x + 1 < width ? left + 3 : left;
    const int red = a[left] + a[right] + b[left] + b[right];
    const int green = a[left + 1] + a[right + 1] + b[left + 1] + b[right + 1];
    const int blue = a[left + 2] + a[right + 2] + b[left + 2] + b[right + 2];
    u[x * step] = static_cast<uint8_t>((kUR * red + kUG * green + kUB * blue + (kHalf << 2) + (128 << 17)) >> 17);
    v[x * step] = static_cast<uint8_t>((kVR * red + kVG * green + kVB * blue + (kHalf << 2) + (128 << 17)) >> 17);
  }
}

void bgra_row(const uint8_t* __restrict rgb, uint8_t* __restrict out, size_t width) {
  for (size_t x = has_avx2() ? bgra_avx2(rgb, out, width) : 0; x < width; ++x) {
    out[4 * x] = rgb[3 * x + 2];
    out[4 * x + 1] = rgb[3 * x + 1];
    out[4 * x + 2] = rgb[3 * x];
    out[4 * x + 3] = 255;
  }
}

}  // namespace

int plane_count(int format) { return format == EF_I420 ? 3 : format == EF_NV12 ? 2 : 1; }

size_t plane_rows(int, int index, uint32_t height) { return index ? (height + 1) / 2 : height; }

size_t row_bytes(int format, int index, uint32_t width) {
  const size_t pixels = width;
  if (format == EF_RGB24) return 3 * pixels;
  if (format == EF_BGRA) return 4 * pixels;
  if (!index) return pixels;
  return (pixels + 1) / 2 * (format == EF_NV12 ? 2 : 1);
}

void convert(const uint8_t* rgb, const ef_image& image) {
  const size_t width = image.width, height = image.height, row = 3 * width;
  for (size_t y = 0; y < height; ++y) {
    const uint8_t* in = rgb + y * row;
    uint8_t* out = image.plane[0] + y * image.stride[0];
    if (image.format == EF_RGB24) {
      std::memcpy(out, in, row);
    } else if (image.format == EF_BGRA) {
      bgra_row(in, out, width);
    } else {
      luma_row(in, out, width);
    }
  }
  if (image.format != EF_NV12 && image.format != EF_I420) return;
  const bool interleaved = image.format == EF_NV12;
  for (size_t y = 0; y < (height + 1) / 2; ++y) {
    const uint8_t* a = rgb + 2 * y * row;
    const uint8_t* b = 2 * y + 1 < height ? a + row : a;
    uint8_t* u = image.plane[1] + y * image.stride[1];
    uint8_t* v = interleaved ? u + 1 : image.plane[2] + y * image.stride[2];
    chroma_row(a, b, u, v, width, interleaved ? 2 : 1);
  }
}

}  // namespace everface::client
