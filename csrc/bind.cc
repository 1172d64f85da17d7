// everface._native: each folder of csrc registers its part.
#include <pybind11/pybind11.h>

namespace everface {
namespace ring {
void register_ring(pybind11::module_& module);
}
}  // namespace everface

PYBIND11_MODULE(_native, module) {
  module.doc() = "The native parts of everface. Import it through everface.core.native.";
  auto ring = module.def_submodule("ring", "One end of a channel between two GPUs, over NCCL.");
  everface::ring::register_ring(ring);
}
