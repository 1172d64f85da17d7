// Both ends of the protocol under libFuzzer. Needs clang:
//
//   cmake -S . -B build/fuzz -DCMAKE_CXX_COMPILER=clang++ -DEVERFACE_PYTHON=OFF -DEVERFACE_FUZZ=ON && cmake --build build/fuzz --target fuzz_protocol
//   mkdir -p build/fuzz/new && build/fuzz/fuzz_protocol build/fuzz/new tests/csrc/corpus -runs=1000000
#include "protocol_ends.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  everface::client::feed(data, size);
  return 0;
}
