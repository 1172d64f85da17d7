// The messages between an engine and its clients; python/everface/engine/protocol.py holds the same list, with their fields.
#pragma once

#include <cstddef>
#include <cstdint>

namespace everface::client {

constexpr const char* kMagic = "everface";
constexpr int kMajor = 1, kMinor = 3;
constexpr size_t kMostBytes = 1 << 20;  // of one message

enum Tag {
  kClientHello = 1,
  kOpenRequest = 2,
  kAudioChunk = 3,
  kEndSegmentRequest = 4,
  kInterruptRequest = 5,
  kSlotRelease = 6,
  kStatsRequest = 7,
  kCloseRequest = 8,
  kChangeRequest = 9,
  kUserAudio = 10,
  kEngineHello = 16,
  kOpenReply = 17,
  kFrameNotice = 18,
  kAudioNotice = 19,
  kSegmentNotice = 20,
  kUnderrunNotice = 21,
  kRecoveringNotice = 22,
  kRecoveredNotice = 23,
  kErrorNotice = 24,
  kClosedNotice = 25,
  kAudioAck = 26,
  kStatsReply = 27,
  kQualityNotice = 28,
  kChangeReply = 29,
};

}  // namespace everface::client
