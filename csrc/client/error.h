// A failure on its way to the caller.
#pragma once

#include <string>

#include "everface.h"

namespace everface::client {

struct Error {
  ef_status status = EF_OK;
  std::string text;
  explicit operator bool() const { return status != EF_OK; }
};

}  // namespace everface::client
