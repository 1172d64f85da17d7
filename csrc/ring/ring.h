// One end of a channel between two GPUs: a ring of slots, through which ncclSend and ncclRecv move messages in order.
//
// A slot is a buffer in device memory that the caller owns. Messages are numbered from 0 (tickets); ticket t uses slot
// t % slots. A caller waits only for a free slot or for a message, and every wait ends: with what it waited for, or with
// ChannelError once nothing moved for the timeout. No call waits for the GPU:
//
//   sender     send: copies the parts into a slot on the caller's stream, so that stream may overwrite their source at once
//   receiver   recv: posts a receive of so many bytes · wait: the slot holds them · release: the caller's stream has read them
//
// Each end has a thread that makes all its NCCL calls on a non-blocking communicator (NCCL wants one thread per communicator), polls
// its asynchronous error, and aborts it when the peer times out. NCCL works on a stream that belongs to the end and has the highest
// priority; events order it with the caller's streams. Both ends must agree on the size of each message by other means. Credits are
// the caller's too: NCCL may buffer a send, so a completed send does not mean that the peer received it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "cuda_api.h"
#include "nccl_api.h"

namespace everface::ring {

enum class Side { sender = 0, receiver = 1 };  // also the rank in the communicator of two
enum class State { joining, ready, broken, closed };

// The channel can no longer be used: aborted, closed, timed out, or in error. what() says which.
class ChannelError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Bytes that go to `offset` of the slot.
struct Part {
  const void* data;
  std::size_t offset;
  std::size_t bytes;
};

struct Options {
  int device = 0;
  std::vector<void*> slots;  // each of `capacity` bytes, on `device`, kept until `close` has returned true
  std::size_t capacity = 0;
  std::chrono::milliseconds join{60'000};     // to connect to the peer
  std::chrono::milliseconds timeout{10'000};  // with messages in flight and none completing
};

class Ring {
 public:
  // Returns at once; the two ends connect in the background. Throws std::invalid_argument or std::runtime_error.
  Ring(const Nccl& nccl, const Cuda& cuda, const NcclUniqueId& id, Side side, Options options);
  ~Ring();  // aborts what is in flight
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // Sender: waits for a free slot, then queues a message of `bytes` bytes made of `parts`, read on stream `after`.
  std::uint64_t send(const std::vector<Part>& parts, std::size_t bytes, CudaStream after);

  // Receiver: queues a receive. Throws std::logic_error if every slot is posted or not yet released.
  std::uint64_t recv(std::size_t bytes);

  // Waits until the message is complete on the device and returns its slot's address.
  void* wait(std::uint64_t ticket);
  bool done(std::uint64_t ticket) const;

  // Receiver: the slot may be written again once stream `after` has done what was queued on it so far. In order of tickets.
  void release(std::uint64_t ticket, CudaStream after);

  void abort(const std::string& reason);  // ends every wait
  // Completes what was queued, leaves the communicator, and returns whether all that happened in time. After an abort it waits
  // for the abort to finish. False: the device may still write to the slots.
  bool close();

  State state() const;
  std::string reason() const;  // why it is broken or closed, else empty

 private:
  struct Core;
  std::shared_ptr<Core> core_;  // shared with the thread, which outlives this object if NCCL does not return
  std::thread thread_;
};

}  // namespace everface::ring
