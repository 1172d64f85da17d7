// What the fake NCCL and CUDA runtime offer to tests beyond the entry points of the real ones.
#pragma once

#include <cstdint>

extern "C" {

// How one rank's next communicator misbehaves. Sends and receives are counted from 0, which is the handshake; -1: never.
struct FakeFaults {
  std::uint64_t seed;
  std::uint32_t delay_us;   // each join, call and transfer takes a random time up to this
  std::int32_t eager;       // a send completes before it is received (one message ahead at most); else when it was received
  std::int32_t fail_call;   // this call returns `code`
  std::int32_t fail_async;  // during this transfer the asynchronous error becomes `code`, and the transfer never completes
  std::int32_t hang_issue;  // this call stays "in progress"
  std::int32_t hang_run;    // this transfer never completes
  std::int32_t stall_call;  // this call returns after `stall_ms`
  std::int32_t code;
  std::uint32_t stall_ms;
};

void fakeNcclFaults(int rank, const FakeFaults* faults);
int fakeNcclLive();  // communicators that exist
int fakeCudaLive();  // streams and events that exist, the work on streams included
void fakeCudaFail(int code);  // every event query returns this, until it is 0 again

int cudaLaunchHostFunc(void* stream, void (*function)(void*), void* argument);
}
