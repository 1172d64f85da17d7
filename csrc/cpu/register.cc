// everface._native.cpu. Addresses are integers (Tensor.data_ptr()), so no torch header is needed; the caller checks shapes and types.
#include <pybind11/pybind11.h>

#include "norm_silu.h"

namespace py = pybind11;

namespace everface::cpu {
namespace {

using Address = std::uintptr_t;
using Free = py::call_guard<py::gil_scoped_release>;

template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Type type_of(bool bfloat16) { return bfloat16 ? Type::bfloat16 : Type::float32; }

}  // namespace

void register_cpu(py::module_& module) {
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
}

}  // namespace everface::cpu
