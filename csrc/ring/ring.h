// One end of a hop between two GPUs: bytes travel from a giver to a taker by ncclSend and ncclRecv, in order, through a few slots.
//
// A slot is a buffer in device memory that the caller owns. Messages are numbered from 0 (tickets); ticket t lives in slot
// t % slots. Nothing but a wait for a slot or a message holds a caller, and every wait ends: with what it waited for, or with
// Broken once nothing moved for the timeout. No call ever waits for the GPU:
//
//   giver   send: copies the parts into a slot on the caller's stream, so that stream may at once overwrite their source
//   taker   recv: posts a receive of so many bytes · wait: the slot holds them · release: the caller's stream has read them
//
// Each end has a thread that makes all its NCCL calls on a non-blocking communicator (NCCL wants one thread a communicator), polls
// its asynchronous error, and aborts it when the peer is late. NCCL works on a stream of the end's own, of the highest
// priority; events tie it to the caller's streams. Both ends must agree on the size of each message; how they do is not a matter
// of this file, nor are credits: NCCL may buffer a send, so a send that completed does not mean that anybody took it.
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

enum class Side { giver = 0, taker = 1 };  // also the rank in the communicator of two
enum class State { joining, ready, broken, closed };

// The hop is of no further use: aborted, closed, late, or in error. what() says which.
class Broken : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Bytes that go to `offset` of the slot.
struct Part {
  const void* data;
  std::size_t offset;
  std::size_t bytes;
};

struct Terms {
  int device = 0;
  std::vector<void*> slots;  // each of `capacity` bytes, on `device`, kept until `close` has answered true
  std::size_t capacity = 0;
  std::chrono::milliseconds join{60'000};  // to meet the peer
  std::chrono::milliseconds late{10'000};  // with messages under way and none completing
};

class Ring {
 public:
  // Returns at once; the two ends meet in the background. Throws std::invalid_argument or std::runtime_error.
  Ring(const Nccl& nccl, const Cuda& cuda, const NcclUniqueId& id, Side side, Terms terms);
  ~Ring();  // aborts what is under way
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // Giver: waits for a free slot, then queues a message of `bytes` bytes made of `parts`, read on stream `after`.
  std::uint64_t send(const std::vector<Part>& parts, std::size_t bytes, CudaStream after);

  // Taker: queues a receive. Throws std::logic_error if every slot is posted or not yet released.
  std::uint64_t recv(std::size_t bytes);

  // Waits until the message is complete on the device and answers its slot's address.
  void* wait(std::uint64_t ticket);
  bool done(std::uint64_t ticket) const;

  // Taker: the slot may be written again once stream `after` has done what it was given so far. In order of tickets.
  void release(std::uint64_t ticket, CudaStream after);

  void abort(const std::string& reason);  // wakes whoever waits
  // Completes what was queued, leaves the communicator, and answers whether all that happened in time. After an abort it waits
  // for the abort to be through. False: something on the device may still touch the slots.
  bool close();

  State state() const;
  std::string reason() const;  // why it is broken or closed, else empty

 private:
  struct Core;
  std::shared_ptr<Core> core_;  // shared with the thread, which outlives this object if NCCL does not return
  std::thread thread_;
};

}  // namespace everface::ring
