// The part of msgpack that the protocol uses. Reading checks every bound: the bytes come from another process.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace everface::client {

class Writer {
 public:
  // A message's array: its tag and `fields` more.
  Writer(int tag, int fields) {
    out_.append(4, '\0');  // the length, see message()
    out_.push_back(static_cast<char>(0x90 | (fields + 1)));
    integer(tag);
  }
  Writer& integer(int64_t value) {
    if (value >= 0) return unsigned_integer(static_cast<uint64_t>(value));
    out_.push_back(static_cast<char>(0xd3));
    big_endian(static_cast<uint64_t>(value), 8);
    return *this;
  }
  Writer& unsigned_integer(uint64_t value) {
    if (value < 128) {
      out_.push_back(static_cast<char>(value));
    } else {
      out_.push_back(static_cast<char>(0xcf));
      big_endian(value, 8);
    }
    return *this;
  }
  Writer& boolean(bool value) {
    out_.push_back(static_cast<char>(value ? 0xc3 : 0xc2));
    return *this;
  }
  Writer& real(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    out_.push_back(static_cast<char>(0xcb));
    big_endian(bits, 8);
    return *this;
  }
  Writer& text(std::string_view value) { return sized(0xdb, value); }
  Writer& bytes(const void* data, size_t size) { return sized(0xc6, {static_cast<const char*>(data), size}); }
  // The whole message, with its length in front.
  std::string& message() {
    const auto size = static_cast<uint32_t>(out_.size() - 4);
    for (int i = 0; i < 4; ++i) out_[static_cast<size_t>(i)] = static_cast<char>(size >> (8 * i));
    return out_;
  }

 private:
  Writer& sized(int kind, std::string_view value) {
    out_.push_back(static_cast<char>(kind));
    big_endian(value.size(), 4);
    out_.append(value);
    return *this;
  }
  void big_endian(uint64_t value, int size) {
    for (int i = size - 1; i >= 0; --i) out_.push_back(static_cast<char>(value >> (8 * i)));
  }
  std::string out_;
};

// The fields of one message, in order. A field that is missing has its default; one of another type makes ok() false.
class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : at_(data), end_(data + size) {
    const int head = byte();
    if ((head & 0xf0) == 0x90) {
      left_ = head & 0x0f;
    } else if (head == 0xdc) {
      left_ = static_cast<int>(number(2));
    } else {
      ok_ = false;
    }
  }
  bool ok() const { return ok_; }
  int64_t integer(int64_t missing = 0) {
    if (!next()) return missing;
    const int head = byte();
    if (head < 0x80) return head;
    if (head >= 0xe0) return head - 0x100;
    switch (head) {
      case 0xcc: return static_cast<int64_t>(number(1));
      case 0xcd: return static_cast<int64_t>(number(2));
      case 0xce: return static_cast<int64_t>(number(4));
      case 0xcf: return static_cast<int64_t>(number(8));
      case 0xd0: return static_cast<int8_t>(number(1));
      case 0xd1: return static_cast<int16_t>(number(2));
      case 0xd2: return static_cast<int32_t>(number(4));
      case 0xd3: return static_cast<int64_t>(number(8));
      default: ok_ = false; return missing;
    }
  }
  bool boolean(bool missing = false) {
    if (!next()) return missing;
    const int head = byte();
    if (head != 0xc2 && head != 0xc3) ok_ = false;
    return head == 0xc3;
  }
  double real(double missing = 0) {
    if (left_ > 0 && at_ < end_ && *at_ == 0xcb) {
      next();
      byte();
      const uint64_t bits = number(8);
      double value;
      std::memcpy(&value, &bits, sizeof value);
      return value;
    }
    return left_ > 0 ? static_cast<double>(integer()) : missing;
  }
  std::string_view text() { return sized(0xa0, 0x1f, 0xd9); }
  std::string_view bytes() { return sized(-1, 0, 0xc4); }

 private:
  bool next() {
    if (!ok_ || left_ <= 0) return false;
    --left_;
    return true;
  }
  int byte() {
    if (at_ >= end_) {
      ok_ = false;
      return 0;
    }
    return *at_++;
  }
  uint64_t number(int size) {
    uint64_t value = 0;
    for (int i = 0; i < size; ++i) value = value << 8 | static_cast<uint64_t>(byte());
    return value;
  }
  std::string_view sized(int fixed, int mask, int base) {
    if (!next()) return {};
    const int head = byte();
    uint64_t size = 0;
    if (fixed >= 0 && (head & ~mask) == fixed) {
      size = static_cast<uint64_t>(head & mask);
    } else if (head >= base && head <= base + 2) {
      size = number(1 << (head - base));
    } else {
      ok_ = false;
    }
    if (!ok_ || size > static_cast<uint64_t>(end_ - at_)) {
      ok_ = false;
      return {};
    }
    const std::string_view value(reinterpret_cast<const char*>(at_), static_cast<size_t>(size));
    at_ += size;
    return value;
  }
  const uint8_t *at_, *end_;
  int left_ = 0;
  bool ok_ = true;
};

}  // namespace everface::client
