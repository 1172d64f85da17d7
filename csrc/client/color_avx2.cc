#include "color_avx2.h"

#include "color.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define EVERFACE_AVX2 __attribute__((target("avx2")))

namespace everface::client {
namespace {

// The same order of bytes in both halves.
EVERFACE_AVX2 inline __m256i both(char a, char b, char c, char d, char e, char f, char g, char h, char i, char j, char k, char l, char m, char n,
                                  char o, char p) {
  return _mm256_broadcastsi128_si256(_mm_setr_epi8(a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p));
}

// Eight pixels: four at the begin of the low half, four at the end of the high one, so that nothing behind them is read.
EVERFACE_AVX2 inline __m256i load(const uint8_t* at) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at)), high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + 8));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}

// An order for what load() returns, from that of its low half. -1 stays.
EVERFACE_AVX2 inline __m256i of_load(__m256i order) {
  const __m256i four = _mm256_setr_epi32(0, 0, 0, 0, 0x04040404, 0x04040404, 0x04040404, 0x04040404);
  return _mm256_add_epi8(order, _mm256_and_si256(four, _mm256_cmpgt_epi8(order, _mm256_set1_epi8(-1))));
}

EVERFACE_AVX2 inline void store(uint8_t* at, __m256i value) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), value); }

// The low byte of each of 32 numbers, in order of the numbers' groups of four.
EVERFACE_AVX2 inline __m256i pack(const __m256i (&parts)[4]) {
  const __m256i bytes = _mm256_packus_epi16(_mm256_packs_epi32(parts[0], parts[1]), _mm256_packs_epi32(parts[2], parts[3]));
  return _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

}  // namespace

bool has_avx2() {
  static const bool has = __builtin_cpu_supports("avx2");
  return has;
}

EVERFACE_AVX2 size_t luma_avx2(const uint8_t* rgb, uint8_t* y, size_t width) {
  const __m256i red_green = of_load(both(0, -1, 1, -1, 3, -1, 4, -1, 6, -1, 7, -1, 9, -1, 10, -1));
  const __m256i blue = of_load(both(2, -1, -1, -1, 5, -1, -1, -1, 8, -1, -1, -1, 11, -1, -1, -1));
  const __m256i of_red_green = _mm256_set1_epi32(kYG << 16 | kYR), of_blue = _mm256_set1_epi32(kYB), bias = _mm256_set1_epi32(kHalf + (16 << 15));
  size_t x = 0;
  for (; x + 32 <= width; x += 32) {
    __m256i parts[4];
    for (size_t i = 0; i < 4; ++i) {
      const __m256i pixels = load(rgb + 3 * (x + 8 * i));
      const __m256i sum = _mm256_add_epi32(_mm256_madd_epi16(_mm256_shuffle_epi8(pixels, red_green), of_red_green),
                                           _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, blue), of_blue));
      parts[i] = _mm256_srli_epi32(_mm256_add_epi32(sum, bias), 15);
    }
    store(y + x, pack(parts));
  }
  return x;
}

EVERFACE_AVX2 size_t chroma_avx2(const uint8_t* a, const uint8_t* b, uint8_t* u, uint8_t* v, size_t width, bool interleaved) {
  const __m256i pairs = of_load(both(0, 3, 1, 4, 2, 5, -1, -1, 6, 9, 7, 10, 8, 11, -1, -1));  // red red green green blue blue 0 0, twice
  const __m256i ones = _mm256_set1_epi8(1), bias = _mm256_set1_epi32((kHalf << 2) + (128 << 17));
  const __m256i of_u = _mm256_broadcastsi128_si256(_mm_setr_epi16(kUR, kUG, kUB, 0, kUR, kUG, kUB, 0));
  const __m256i of_v = _mm256_broadcastsi128_si256(_mm_setr_epi16(kVR, kVG, kVB, 0, kVR, kVG, kVB, 0));
  const __m256i alternate = both(0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15), apart = both(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  size_t x = 0;
  for (; x + 32 <= width; x += 32) {
    __m256i parts[4];
    for (size_t i = 0; i < 4; ++i) {
      const size_t at = 3 * (x + 8 * i);
      const __m256i sums = _mm256_add_epi16(_mm256_maddubs_epi16(_mm256_shuffle_epi8(load(a + at), pairs), ones),
                                            _mm256_maddubs_epi16(_mm256_shuffle_epi8(load(b + at), pairs), ones));
      const __m256i both_uv = _mm256_hadd_epi32(_mm256_madd_epi16(sums, of_u), _mm256_madd_epi16(sums, of_v));
      parts[i] = _mm256_srai_epi32(_mm256_add_epi32(both_uv, bias), 17);
    }
    const __m256i uuvv = pack(parts);
    if (interleaved) {
      store(u + x, _mm256_shuffle_epi8(uuvv, alternate));
    } else {
      const __m256i planes = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(uuvv, apart), 0xd8);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(u + x / 2), _mm256_castsi256_si128(planes));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(v + x / 2), _mm256_extracti128_si256(planes, 1));
    }
  }
  return x;
}

EVERFACE_AVX2 size_t bgra_avx2(const uint8_t* rgb, uint8_t* out, size_t width) {
  const __m256i order = of_load(both(2, 1, 0, -1, 5, 4, 3, -1, 8, 7, 6, -1, 11, 10, 9, -1));
  const __m256i alpha = _mm256_set1_epi32(static_cast<int>(0xff000000u));
  size_t x = 0;
  for (; x + 8 <= width; x += 8) store(out + 4 * x, _mm256_or_si256(_mm256_shuffle_epi8(load(rgb + 3 * x), order), alpha));
  return x;
}

}  // namespace everface::client

#else

namespace everface::client {

bool has_avx2() { return false; }
size_t luma_avx2(const uint8_t*, uint8_t*, size_t) { return 0; }
size_t chroma_avx2(const uint8_t*, const uint8_t*, uint8_t*, uint8_t*, size_t, bool) { return 0; }
size_t bgra_avx2(const uint8_t*, uint8_t*, size_t) { return 0; }

}  // namespace everface::client

#endif
