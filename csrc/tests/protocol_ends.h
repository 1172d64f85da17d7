// Each end of the protocol, with bytes in the place of the other end: for messages changed at random, for inputs that were kept, for libFuzzer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>

namespace everface::client {

using Random = std::mt19937_64;
inline uint64_t below(Random& random, uint64_t bound) { return random() % bound; }

// What the library receives from an engine.
struct FromEngine {
  std::string bytes;
  bool passes = true;  // a descriptor comes with them,
  bool sized = true;   // of memory as large as 4 slots of 4096 bytes
  bool ends = false;   // the socket is closed then
  bool on_gpu = false; // frames on a GPU are asked for
};

// A session opens over `from` and is used by some calls drawn from `random`.
void feed_client(const FromEngine& from, Random& random);

// The fake engine serves a client that sends `bytes`. abrupt: which does not wait until the engine has read them.
void feed_engine(const std::string& bytes, bool abrupt);

// One input of a fuzzer: a byte that says which end and how, a byte that seeds the calls, and the bytes that the end receives.
// Bit 0: the fake engine, else the library. Of the library, bit 1: no descriptor comes; 2: of empty memory; 3: the socket is closed then; 4: frames
// on a GPU are asked for, which needs the fake CUDA runtime.
void feed(const uint8_t* data, size_t size);

}  // namespace everface::client
