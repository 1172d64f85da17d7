// everface._native: each folder of csrc registers its part.
#include <pybind11/pybind11.h>

namespace everface {
namespace cpu {
void register_cpu(pybind11::module_& module);
}
namespace ring {
void register_ring(pybind11::module_& module);
}
}  // namespace everface

PYBIND11_MODULE(_native, module) {
  module.doc() = "The native parts of everface. Import it through everface.core.native.";
  auto cpu = module.def_submodule("cpu", "Operations that plain torch does in several passes over memory.");
  everface::cpu::register_cpu(cpu);
  auto ring = module.def_submodule("ring", "One end of a channel between two GPUs, over NCCL.");
  everface::ring::register_ring(ring);
}
