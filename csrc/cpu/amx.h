// GEMM in bfloat16 on the matrix unit of Intel's server CPUs (AMX), for the few rows of a small model's block: a library's call
// costs as much there as its arithmetic. Weights are packed once; what follows a GEMM is done while its rows are in the first cache.
#pragma once

#include <cstdint>

namespace everface::cpu {

bool has_amx();  // of this machine, and the system grants it. Asks once.

// Elements of a weight [out, in] when packed: out rounded up to 32. `in` must be a multiple of 32.
std::int64_t packed_size(int out, int in);
void pack_weight(const std::uint16_t* weight, std::uint16_t* packed, int out, int in);

struct Linear {
  const std::uint16_t *x, *packed, *bias;  // bias [out] or null
  std::uint16_t* y;
  std::int64_t rows, x_stride, y_stride;  // elements from row to row
  int in, out;
  bool gelu;
};

// y = x . weight^T + bias, then GELU in its tanh form; sums in float32, one rounding.
void linear(const Linear& given, int threads);

}  // namespace everface::cpu
