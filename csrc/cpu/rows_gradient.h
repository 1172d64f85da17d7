// Gradients of the operations of rows.h, for training.
#pragma once

#include "rows.h"

namespace everface::cpu {

// Of u = n * factor + shift with n = (x - mean) / sqrt(mean((x - mean)^2) + eps), or without the mean. Rows are in groups with one factor and one
// shift each; a group's gradients are summed by one thread, so that their number does not change a bit.
struct NormGradient {
  Rows x, grad_u, grad_x;
  const float* factor;
  std::int64_t factor_stride;        // from group to group; 0: one row for all
  float *grad_factor, *grad_shift;   // [groups][channels]; grad_shift may be null
  bool center;
  float eps;
  std::int64_t groups, group_rows;
  int channels;
};

void norm_backward(const NormGradient& given, int threads);

// Of x + gate * y: grad_y = gate * grad, and grad_gate, the sum over a group's rows of grad * y. Groups and factors as above.
struct GateGradient {
  Rows y, grad, grad_y;
  const float* gate;
  std::int64_t gate_stride;
  float* grad_gate;
  std::int64_t groups, group_rows;
  int channels;
};

void gate_backward(const GateGradient& given, int threads);

}  // namespace everface::cpu
