// everface._native.cpu. Addresses are integers (Tensor.data_ptr()), so no torch header is needed; the caller checks shapes and types.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <stdexcept>
#include <tuple>

#include "amx.h"
#include "attention.h"
#include "conv.h"
#include "frames.h"
#include "norm_silu.h"
#include "rows.h"
#include "rows_gradient.h"

namespace py = pybind11;

namespace everface::cpu {
namespace {

using Address = std::uintptr_t;
using Free = py::call_guard<py::gil_scoped_release>;
using Operand = std::optional<std::tuple<Address, bool, std::int64_t>>;  // address, whether it is bfloat16, stride of its rows; None: there is none

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Type type_of(bool bfloat16) { return bfloat16 ? Type::bfloat16 : Type::float32; }

void need_amx() {  // also asks the system for it, without which the first tile is an illegal instruction
  if (!has_amx()) throw std::runtime_error("this CPU has no AMX");
}

Rows rows_of(const Operand& given) {
  if (!given) return {nullptr, Type::float32, 0};
  const auto [address, bfloat16, stride] = *given;
  return {at<void>(address), type_of(bfloat16), stride};
}

Video video_of(Address address, bool bfloat16, const std::array<int, 3>& size, const std::array<std::int64_t, 4>& strides) {
  return {at<void>(address), type_of(bfloat16), strides[0], strides[1], strides[2], strides[3], size[0], size[1], size[2]};
}

}  // namespace

void register_cpu(py::module_& module) {
  module.def(
      "warp_frames",
      [](Address video, bool bfloat16, const std::array<int, 3>& size, const std::array<std::int64_t, 4>& strides, Address fields, Address motion, int count,
         Address to, int threads) {
        warp_frames(video_of(video, bfloat16, size, strides), at<float>(fields), at<float>(motion), count, at<float>(to), threads);
      },
      py::arg("video"), py::arg("bfloat16"), py::arg("size"), py::arg("strides"), py::arg("fields"), py::arg("motion"), py::arg("count"), py::arg("to"),
      py::arg("threads"), Free(), "Frames [3, T, H, W] of size (T, H, W) and four strides, warped by count fields, as [T, H, W, 3] float32.");
  module.def(
      "to_rgb",
      [](Address video, bool bfloat16, const std::array<int, 3>& size, const std::array<std::int64_t, 4>& strides, Address to, int threads) {
        to_rgb(video_of(video, bfloat16, size, strides), at<std::uint8_t>(to), threads);
      },
      py::arg("video"), py::arg("bfloat16"), py::arg("size"), py::arg("strides"), py::arg("to"), py::arg("threads"), Free(), "As bytes [T, H, W, 3].");
  module.def(
      "norm_silu",
      [](Address x, Address gamma, Address y, bool bfloat16, std::int64_t rows, int channels, int threads) {
        norm_silu(at<void>(x), at<float>(gamma), at<void>(y), type_of(bfloat16), rows, channels, threads);
      },
      py::arg("x"), py::arg("gamma"), py::arg("y"), py::arg("bfloat16"), py::arg("rows"), py::arg("channels"), py::arg("threads"), Free(),
      "y = silu(rms_norm(x) * gamma) of [rows, channels] without gaps; gamma is float32.");
  module.def(
      "norm_silu_backward",
      [](Address x, Address gamma, Address grad_y, Address grad_x, Address grad_gamma, bool bfloat16, std::int64_t rows, int channels, int threads) {
        norm_silu_backward(at<void>(x), at<float>(gamma), at<void>(grad_y), at<void>(grad_x), at<float>(grad_gamma), type_of(bfloat16), rows, channels,
                           threads);
      },
      py::arg("x"), py::arg("gamma"), py::arg("grad_y"), py::arg("grad_x"), py::arg("grad_gamma"), py::arg("bfloat16"), py::arg("rows"),
      py::arg("channels"), py::arg("threads"), Free(), "Its gradients; grad_gamma is float32.");
  module.def(
      "gate_norm_modulate",
      [](const Operand& x, const Operand& y, const Operand& gate, const Operand& weight, const Operand& bias, const Operand& shift,
         const Operand& scale, const Operand& residual, const Operand& u, bool norm_bfloat16, float eps, std::int64_t rows, std::int64_t frame_rows,
         int channels, int threads) {
        gate_norm_modulate({rows_of(x), rows_of(y), rows_of(residual), rows_of(u), rows_of(weight), rows_of(bias), rows_of(gate), rows_of(shift),
                            rows_of(scale), type_of(norm_bfloat16), eps, rows, frame_rows, channels},
                           threads);
      },
      py::arg("x"), py::arg("y"), py::arg("gate"), py::arg("weight"), py::arg("bias"), py::arg("shift"), py::arg("scale"), py::arg("residual"),
      py::arg("u"), py::arg("norm_bfloat16"), py::arg("eps"), py::arg("rows"), py::arg("frame_rows"), py::arg("channels"), py::arg("threads"), Free(),
      "Operands are (address, bfloat16, stride of rows) or None; gate, shift and scale are float32.");
  module.def(
      "norm_rope",
      [](const Operand& x, const Operand& out, Address weight, Address table, float eps, std::int64_t rows, std::int64_t tokens, std::int64_t skip,
         int channels, int heads, int threads) {
        norm_rope({rows_of(x), rows_of(out), at<void>(weight), at<float>(table), rows, tokens, skip, eps, channels, heads}, threads);
      },
      py::arg("x"), py::arg("out"), py::arg("weight"), py::arg("table"), py::arg("eps"), py::arg("rows"), py::arg("tokens"), py::arg("skip"),
      py::arg("channels"), py::arg("heads"), py::arg("threads"), Free(), "An address of 0 is no weight, or no table.");
  module.def(
      "qk_norm_rope_store",
      [](const Operand& q, const Operand& k, const Operand& v, const Operand& out, const Operand& ring_k, const Operand& ring_v, Address weight_q,
         Address weight_k, Address table, float eps, std::int64_t rows, int channels, int heads, int threads) {
        norm_rope({rows_of(q), rows_of(out), at<void>(weight_q), at<float>(table), rows, rows, 0, eps, channels, heads}, threads);
        norm_rope({rows_of(k), rows_of(ring_k), at<void>(weight_k), at<float>(table), rows, rows, 0, eps, channels, heads}, threads);
        copy_rows(rows_of(v), rows_of(ring_v), rows, channels);
      },
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("out"), py::arg("ring_k"), py::arg("ring_v"), py::arg("weight_q"), py::arg("weight_k"),
      py::arg("table"), py::arg("eps"), py::arg("rows"), py::arg("channels"), py::arg("heads"), py::arg("threads"), Free(),
      "ring_k and ring_v begin at the block's slot.");
  module.def(
      "gelu",
      [](Address x, Address y, bool bfloat16, std::int64_t count, int threads) { gelu(at<void>(x), at<void>(y), type_of(bfloat16), count, threads); },
      py::arg("x"), py::arg("y"), py::arg("bfloat16"), py::arg("count"), py::arg("threads"), Free(), "The tanh form, without gaps.");
  module.def(
      "gelu_backward",
      [](Address x, Address grad_y, Address grad_x, bool bfloat16, std::int64_t count, int threads) {
        gelu_backward(at<void>(x), at<void>(grad_y), at<void>(grad_x), type_of(bfloat16), count, threads);
      },
      py::arg("x"), py::arg("grad_y"), py::arg("grad_x"), py::arg("bfloat16"), py::arg("count"), py::arg("threads"), Free(), "Its gradient.");
  module.def(
      "norm_backward",
      [](const Operand& x, const Operand& grad_u, const Operand& grad_x, Address factor, std::int64_t factor_stride, Address grad_factor,
         Address grad_shift, bool center, float eps, std::int64_t groups, std::int64_t group_rows, int channels, int threads) {
        norm_backward({rows_of(x), rows_of(grad_u), rows_of(grad_x), at<float>(factor), factor_stride, at<float>(grad_factor), at<float>(grad_shift),
                       center, eps, groups, group_rows, channels},
                      threads);
      },
      py::arg("x"), py::arg("grad_u"), py::arg("grad_x"), py::arg("factor"), py::arg("factor_stride"), py::arg("grad_factor"), py::arg("grad_shift"),
      py::arg("center"), py::arg("eps"), py::arg("groups"), py::arg("group_rows"), py::arg("channels"), py::arg("threads"), Free(),
      "Gradients of norm(x) * factor + shift; factor and its gradients are float32, a grad_shift of 0 is none.");
  module.def(
      "gate_backward",
      [](const Operand& y, const Operand& grad, const Operand& grad_y, Address gate, std::int64_t gate_stride, Address grad_gate, std::int64_t groups,
         std::int64_t group_rows, int channels, int threads) {
        gate_backward({rows_of(y), rows_of(grad), rows_of(grad_y), at<float>(gate), gate_stride, at<float>(grad_gate), groups, group_rows, channels},
                      threads);
      },
      py::arg("y"), py::arg("grad"), py::arg("grad_y"), py::arg("gate"), py::arg("gate_stride"), py::arg("grad_gate"), py::arg("groups"),
      py::arg("group_rows"), py::arg("channels"), py::arg("threads"), Free(), "Gradients of x + gate * y; gate and its gradient are float32.");
  module.def(
      "attend_few_keys",
      [](Address q, Address k, Address v, Address o, bool bfloat16, std::int64_t batch, std::int64_t key_batch, std::int64_t tokens, int keys, int heads,
         int width, int threads) {
        attend_few_keys({at<void>(q), at<void>(k), at<void>(v), at<void>(o), type_of(bfloat16), batch, key_batch, tokens, keys, heads, width}, threads);
      },
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("o"), py::arg("bfloat16"), py::arg("batch"), py::arg("key_batch"), py::arg("tokens"),
      py::arg("keys"), py::arg("heads"), py::arg("width"), py::arg("threads"), Free(), "Without gaps: q, o [batch, tokens, heads, width].");
  module.def("has_amx", &has_amx, "Whether those below run on this machine.");
  module.def("packed_size", &packed_size, py::arg("out"), py::arg("in"));
  module.def(
      "pack_weight", [](Address weight, Address packed, int out, int in) { pack_weight(at<std::uint16_t>(weight), at<std::uint16_t>(packed), out, in); },
      py::arg("weight"), py::arg("packed"), py::arg("out"), py::arg("in"), Free());
  module.def(
      "linear",
      [](Address x, std::int64_t x_stride, Address packed, Address bias, Address y, std::int64_t y_stride, std::int64_t rows, int in, int out, bool gelu,
         int threads) {
        need_amx();
        linear({at<std::uint16_t>(x), at<std::uint16_t>(packed), at<std::uint16_t>(bias), at<std::uint16_t>(y), rows, x_stride, y_stride, in, out, gelu},
               threads);
      },
      py::arg("x"), py::arg("x_stride"), py::arg("packed"), py::arg("bias"), py::arg("y"), py::arg("y_stride"), py::arg("rows"), py::arg("in"),
      py::arg("out"), py::arg("gelu"), py::arg("threads"), Free(), "bfloat16; a bias of 0 is none.");
  module.def(
      "attend_block",
      [](Address q, Address k, Address v, Address o, Address log_sums, std::int64_t q_stride, std::int64_t kv_stride, std::int64_t o_stride, int queries,
         int keys, int heads, int width, int threads) {
        need_amx();
        attend_block({at<std::uint16_t>(q), at<std::uint16_t>(k), at<std::uint16_t>(v), at<std::uint16_t>(o), q_stride, kv_stride, o_stride, queries, keys,
                      heads, width, at<float>(log_sums)},
                     threads);
      },
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("o"), py::arg("log_sums"), py::arg("q_stride"), py::arg("kv_stride"), py::arg("o_stride"), py::arg("queries"),
      py::arg("keys"), py::arg("heads"), py::arg("width"), py::arg("threads"), Free(), "bfloat16; strides of tokens; log_sums [heads, queries] float32, an address of 0 is none.");
  module.def(
      "attend_block_backward",
      [](Address q, Address k, Address v, Address o, Address log_sums, Address grad_o, Address grad_q, Address grad_k, Address grad_v, std::int64_t q_stride, std::int64_t kv_stride,
         std::int64_t o_stride, int queries, int keys, int heads, int width, int threads) {
        need_amx();
        attend_block_backward({{at<std::uint16_t>(q), at<std::uint16_t>(k), at<std::uint16_t>(v), at<std::uint16_t>(o), q_stride, kv_stride, o_stride, queries,
                                keys, heads, width, at<float>(log_sums)},
                               at<std::uint16_t>(grad_o), at<std::uint16_t>(grad_q), at<std::uint16_t>(grad_k), at<std::uint16_t>(grad_v)},
                              threads);
      },
      py::arg("q"), py::arg("k"), py::arg("v"), py::arg("o"), py::arg("log_sums"), py::arg("grad_o"), py::arg("grad_q"), py::arg("grad_k"), py::arg("grad_v"), py::arg("q_stride"),
      py::arg("kv_stride"), py::arg("o_stride"), py::arg("queries"), py::arg("keys"), py::arg("heads"), py::arg("width"), py::arg("threads"), Free(),
      "bfloat16; strides of tokens, that of grad_o is o_stride; o and log_sums as attend_block left them; gradients have no gaps.");
  module.def(
      "convolve",
      [](Address x, Address gamma, Address past, Address packed, Address bias, Address residual, Address y, int frames, int height, int width, int in,
         int out, int taps, int space, int up, int side, int group, int threads) {
        need_amx();
        convolve({at<std::uint16_t>(x), at<float>(gamma), at<std::uint16_t>(past), at<std::uint16_t>(packed), at<std::uint16_t>(bias),
                  at<std::uint16_t>(residual), at<std::uint16_t>(y), frames, height, width, in, out, taps, space, up, side, group},
                 threads);
      },
      py::arg("x"), py::arg("gamma"), py::arg("past"), py::arg("packed"), py::arg("bias"), py::arg("residual"), py::arg("y"), py::arg("frames"),
      py::arg("height"), py::arg("width"), py::arg("in"), py::arg("out"), py::arg("taps"), py::arg("space"), py::arg("up"), py::arg("side"),
      py::arg("group"), py::arg("threads"), Free(), "bfloat16 but for gamma, float32; an address of 0 is none.");
}

}  // namespace everface::cpu
