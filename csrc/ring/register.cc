// everface._native.ring. Addresses and CUDA streams are integers (Tensor.data_ptr(), Stream.cuda_stream), so no torch header is needed.
// Every call that may wait releases the GIL.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>

#include "library.h"
#include "ring.h"

namespace py = pybind11;

namespace everface::ring {

namespace {

using Free = py::call_guard<py::gil_scoped_release>;
using PartTuple = std::tuple<std::uintptr_t, std::size_t, std::size_t>;

// ~Ring waits for the ring's thread, which must not hold up the interpreter.
struct Unlocked {
  void operator()(Ring* ring) const {
    const py::gil_scoped_release free;
    delete ring;
  }
};
using Holder = std::unique_ptr<Ring, Unlocked>;

CudaStream as_stream(std::uintptr_t handle) { return reinterpret_cast<CudaStream>(handle); }

Holder open_ring(const Nccl& nccl, const Cuda& cuda, const std::string& id, Side side, int device,
                 const std::vector<std::uintptr_t>& slots, std::size_t capacity, int join_ms, int timeout_ms) {
  NcclUniqueId unique;
  if (id.size() != sizeof unique.bytes) throw std::invalid_argument("an NCCL id has 128 bytes");
  std::memcpy(unique.bytes, id.data(), id.size());
  Options options{device, {}, capacity, std::chrono::milliseconds(join_ms), std::chrono::milliseconds(timeout_ms)};
  for (const std::uintptr_t slot : slots) options.slots.push_back(reinterpret_cast<void*>(slot));
  const py::gil_scoped_release free;
  return Holder(new Ring(nccl, cuda, unique, side, std::move(options)));
}

std::uint64_t send_parts(Ring& ring, const std::vector<PartTuple>& tuples, std::size_t bytes, std::uintptr_t stream) {
  std::vector<Part> parts;
  parts.reserve(tuples.size());
  for (const auto& [address, offset, size] : tuples) parts.push_back({reinterpret_cast<const void*>(address), offset, size});
  return ring.send(parts, bytes, as_stream(stream));
}

}  // namespace

void register_ring(py::module_& module) {
  py::register_exception<ChannelError>(module, "ChannelError", PyExc_RuntimeError);
  py::register_exception<Missing>(module, "Missing", PyExc_RuntimeError);

  py::class_<Nccl>(module, "Nccl", "NCCL, loaded from a path.")
      .def(py::init(&Nccl::load), py::arg("path"), Free())
      .def("version",
           [](const Nccl& nccl) {
             int version = 0;
             if (nccl.get_version(&version) != kNcclSuccess) throw std::runtime_error("NCCL does not report its version");
             return version;
           },
           "For example 22304 for 2.23.4.")
      .def("new_id",
           [](const Nccl& nccl) {
             NcclUniqueId id;
             NcclResult result;
             {
               const py::gil_scoped_release free;
               result = nccl.get_unique_id(&id);
             }
             if (result != kNcclSuccess) throw std::runtime_error("NCCL cannot make an id: " + nccl.describe(result));
             return py::bytes(id.bytes, sizeof id.bytes);
           },
           "128 bytes by which the two ends of a channel find each other; one end makes them and sends them to the other.");
  py::class_<Cuda>(module, "Cuda", "The CUDA runtime, loaded from a path.").def(py::init(&Cuda::load), py::arg("path"), Free());

  py::enum_<Side>(module, "Side").value("sender", Side::sender).value("receiver", Side::receiver);
  py::enum_<State>(module, "State")
      .value("joining", State::joining)
      .value("ready", State::ready)
      .value("broken", State::broken)
      .value("closed", State::closed);

  py::class_<Ring, Holder>(module, "Ring", "One end of a channel. Keep the memory of the slots until close() has returned True.")
      .def(py::init(&open_ring), py::arg("nccl"), py::arg("cuda"), py::arg("id"), py::arg("side"), py::arg("device"), py::arg("slots"),
           py::arg("capacity"), py::arg("join_ms"), py::arg("timeout_ms"))
      .def("send", &send_parts, py::arg("parts"), py::arg("bytes"), py::arg("stream"), Free(),
           "Sender: copy parts (address, offset, bytes) into a slot on `stream` and queue it; returns the ticket. Waits for a slot.")
      .def("recv", &Ring::recv, py::arg("bytes"), Free(), "Receiver: queue a receive; returns the ticket.")
      .def("wait", [](Ring& ring, std::uint64_t ticket) { return reinterpret_cast<std::uintptr_t>(ring.wait(ticket)); },
           py::arg("ticket"), Free(), "Wait until the message is complete; returns the address of its slot.")
      .def("done", &Ring::done, py::arg("ticket"))
      .def("release", [](Ring& ring, std::uint64_t ticket, std::uintptr_t stream) { ring.release(ticket, as_stream(stream)); },
           py::arg("ticket"), py::arg("stream"), Free(), "Receiver: the slot may be overwritten once `stream` has done what is queued on it.")
      .def("abort", &Ring::abort, py::arg("reason"), Free())
      .def("close", &Ring::close, Free(), "Complete what is queued and leave; True once that, or an earlier abort, is done.")
      .def_property_readonly("state", &Ring::state)
      .def_property_readonly("reason", &Ring::reason);
}

}  // namespace everface::ring
