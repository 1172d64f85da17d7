#include "library.h"

#include <dlfcn.h>

namespace everface::ring {

Library::Library(const std::string& path) : path_(path), handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
  if (!handle_) throw Missing("the library " + path + " cannot be loaded: " + dlerror());
}

void* Library::symbol(const char* name) const {
  void* found = dlsym(handle_, name);
  if (!found) throw Missing("the library " + path_ + " has no function " + name + ": it is too old, or another library");
  return found;
}

}  // namespace everface::ring
