// A shared library opened at run time. It is never closed: NCCL and the CUDA runtime keep threads and exit handlers.
#pragma once

#include <stdexcept>
#include <string>

namespace everface::ring {

// The library cannot be opened, or lacks a function. what() is one sentence.
class Missing : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class Library {
 public:
  explicit Library(const std::string& path);  // a path, or a bare name for the system's loader to find

  template <class Function>
  void find(const char* name, Function*& function) const {
    function = reinterpret_cast<Function*>(symbol(name));
  }

 private:
  void* symbol(const char* name) const;

  std::string path_;
  void* handle_;
};

}  // namespace everface::ring
