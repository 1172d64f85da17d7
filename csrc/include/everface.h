/*
 * everface.h: talking avatars in a program of yours, without Python, torch or CUDA in it.
 *
 * The library speaks to an engine, a process of its own, over a Unix socket and shared memory. See docs/embed.md.
 *
 * Rules that hold for every function, except where it says otherwise:
 *   - Handles are opaque. Every handle that you get you free with its own function. Any order of freeing is safe.
 *   - A function that returns ef_status explains a failure in ef_last_error(), one sentence, kept for each thread.
 *   - No function calls back, throws or ends the process. No function waits longer than the timeout that you pass; 0 never waits. But a
 *     session with cuda_device, where it opens or recovers, waits for CUDA to start, and who frees the last handle waits up to 3 s for the engine
 *     that was started.
 *   - The path of an image and a prompt are UTF-8; another text is EF_BAD_INPUT.
 *   - After fork(), and so after daemon(3), the child may only free what its parent opened, which leaves the parent's sessions as they are, and
 *     open an engine of its own.
 *   - Structs begin with struct_size, which the function of their defaults fills in. New fields are added at the end only.
 *   - Any thread may call any function of a session, except that ef_session_free and ef_engine_free are called last.
 */
#ifndef EVERFACE_H
#define EVERFACE_H

#include <stddef.h>
#include <stdint.h>

#define EF_ABI_MAJOR 1
#define EF_ABI_MINOR 4

#ifdef __cplusplus
extern "C" {
#endif
#ifdef __GNUC__
#pragma GCC visibility push(default)
#endif

typedef struct ef_engine ef_engine;
typedef struct ef_session ef_session;

typedef enum ef_status {
  EF_OK = 0,
  EF_BAD_INPUT = 1,   /* an argument, an image or audio that cannot be used as it is */
  EF_UNAVAILABLE = 2, /* the engine cannot do it now: too many sessions, no memory, it is stopping */
  EF_VERSION = 3,     /* engine and library speak different protocols */
  EF_LOST = 4,        /* the engine went away */
  EF_TIMEOUT = 5,     /* nothing happened in time */
  EF_CANCELLED = 6,   /* ef_session_cancel or ef_engine_cancel was called */
  EF_CLOSED = 7,      /* the session is closed */
  EF_NO_MEMORY = 8
} ef_status;

/* A newer library may send types that are not here: release them. */
typedef enum ef_event_type {
  EF_EVENT_VIDEO = 1,
  EF_EVENT_AUDIO = 2,       /* your own audio of the video frame before it; silence at playback_hz with an idle frame */
  EF_EVENT_SEGMENT_END = 3, /* the one result of a segment */
  EF_EVENT_UNDERRUN = 4,    /* frames were not ready in time; the last one was held instead */
  EF_EVENT_RECOVERING = 5,  /* the engine lost something; frames stop until EF_EVENT_RECOVERED */
  EF_EVENT_RECOVERED = 6,
  EF_EVENT_ERROR = 7, /* what ended the session; EF_EVENT_CLOSED follows */
  EF_EVENT_CLOSED = 8, /* the last event; none comes after ef_session_close with drain_ms 0 */
  EF_EVENT_QUALITY = 9 /* since ABI 1.2: the machine is too slow for full quality, or fast enough again */
} ef_event_type;

typedef enum ef_sample_format { EF_INT16 = 0, EF_FLOAT32 = 1 } ef_sample_format;

/* Formats of video. NV12 and I420 are BT.709 in limited range. */
typedef enum ef_pixel_format { EF_RGB24 = 0, EF_BGRA = 1, EF_NV12 = 2, EF_I420 = 3 } ef_pixel_format;

/* Since ABI 1.4. How a change of image or prompt begins: as the same shot goes on, or as a new one. */
typedef enum ef_transition { EF_TRANSITION_NONE = 0, EF_TRANSITION_CUT = 1, EF_TRANSITION_DISSOLVE = 2 } ef_transition;

typedef struct ef_engine_config {
  size_t struct_size;
  const char* socket_path; /* of a running engine; NULL: start one, which ends when the handle is freed, or with this process */
  const char* command;     /* of the engine to start, its words divided by spaces; NULL: "everface engine" */
  int fake;                /* 1: neither; frames are drawn by a thread inside the library, for tests */
  uint32_t timeout_ms;     /* for a lost engine to come back. ef_engine_open waits for nothing: EF_OK does not mean that the command works */
} ef_engine_config;

typedef struct ef_session_config {
  size_t struct_size;
  const char* image; /* path of the image of the face */
  uint64_t seed;     /* below 2^63; the same seed and audio give the same video */
  int idle;          /* 1: the face stays alive without audio */
  int paced;         /* 1: frames come at the pace of the clock, else as fast as they are polled */
  int format;        /* ef_pixel_format of EF_EVENT_VIDEO */
  uint32_t width, height; /* 0: from the image */
  uint32_t playback_hz;   /* of the silence that comes with idle frames */
  uint32_t outbox_ms;     /* of video that may wait for you; beyond it, a paced session drops the oldest frames */
  uint32_t slots;         /* frames that you may hold at a time; 0: the engine's choice */
  const char* prompt;     /* NULL: none */
  uint32_t timeout_ms;    /* for the session to open */
  uint32_t reserved; /* 0; before ABI 1.3 nothing was here, so its bytes mean nothing */
  /* since ABI 1.3 */
  int cuda_device; /* number of the GPU, as CUDA counts in this process, that holds the frames, EF_RGB24 alone; -1: host memory */
} ef_session_config;

/* Since ABI 1.4. What ef_session_change changes. */
typedef struct ef_change {
  size_t struct_size;
  const char* image;  /* path of another image; NULL: the same */
  const char* prompt; /* NULL: the same */
  int transition;     /* ef_transition */
} ef_change;

/* A frame's memory. Rows of plane p begin stride[p] bytes apart. RGB24, BGRA: one plane; NV12: Y, UV; I420: Y, U, V. */
typedef struct ef_image {
  size_t struct_size;
  int format; /* ef_pixel_format */
  uint32_t width, height;
  uint8_t* plane[3];
  size_t stride[3];
} ef_image;

/* Read-only. Valid, with all that it points to, until ef_event_release, even if the session is freed before. */
typedef struct ef_event {
  size_t struct_size;
  int type;      /* ef_event_type; only the fields of its type are set */
  int64_t pts;   /* VIDEO, AUDIO: place in the stream, in samples of the model's rate since the session opened */
  double time_s; /* the same in seconds; also of UNDERRUN and QUALITY */
  uint64_t turn; /* VIDEO, AUDIO: interruptions before it */
  /* VIDEO */
  int format; /* ef_pixel_format */
  uint32_t width, height;
  const uint8_t* plane[3];
  size_t stride[3];
  int idle; /* no audio of yours belongs to it */
  int held; /* the last frame again: the next one was not ready in time */
  int matrix; /* of NV12 and I420: 1, BT.709, as in ITU-T H.273 */
  int full_range; /* of NV12 and I420: 0 */
  /* AUDIO */
  const void* samples; /* interleaved */
  size_t sample_count; /* per channel */
  int sample_format;   /* ef_sample_format */
  uint32_t rate_hz, channels;
  /* SEGMENT_END */
  uint64_t segment;
  double pushed_s, shown_s;
  int interrupted;
  /* UNDERRUN */
  uint64_t frames;
  /* RECOVERED */
  double seconds;
  uint64_t recomputed;
  /* ERROR, RECOVERING */
  int status; /* ef_status */
  const char* text; /* also of QUALITY: how frames are made at this level */
  /* QUALITY, since ABI 1.2 */
  uint64_t level; /* 0: full quality */
  /*
   * VIDEO of a session with cuda_device, since ABI 1.3. plane[] is NULL then. The frame is complete. Your stream has to be done with it at
   * ef_event_release, and it is lost with its engine.
   */
  const void* cuda_data; /* EF_RGB24, read-only, in the memory of that GPU; NULL: the frame is in host memory */
  size_t cuda_pitch;     /* bytes from row to row */
  int cuda_device;       /* -1: none */
} ef_event;

typedef struct ef_stats {
  size_t struct_size;
  uint64_t frames, idle_frames, held_frames, underruns; /* without what is held after an interruption */
  uint64_t dropped_frames; /* you did not take them in time */
  double queued_s;         /* of accepted audio that was not shown yet */
  double block_ms;         /* median time of a block in the engine; -1: not known yet */
  double first_frame_s;    /* -1: not known yet */
  int64_t position;        /* where audio pushed now would stand, in samples of the model's rate */
  uint32_t borrowed;       /* frames that you hold, and those that wait for you */
  uint32_t slots;          /* frames that you may hold */
  /* since ABI 1.1 */
  uint64_t level;          /* of quality, lowered on a machine that is too slow; 0: full */
  uint64_t level_changes;
  uint64_t repeated_frames; /* that stood for more than one */
  /* since ABI 1.3 */
  uint64_t refill_frames; /* the last one held, from an interruption to the first frame after it */
} ef_stats;

/* The library's ABI: major << 16 | minor. A program needs the major it was built for, and at least its minor. */
uint32_t ef_abi_version(void);
/* The library's version, as in "0.1.0". */
const char* ef_version(void);
/* The sentence of this thread's last failure. Valid until its next call. Never NULL. */
const char* ef_last_error(void);
/* "EF_OK", "EF_TIMEOUT" ... Never NULL. */
const char* ef_status_name(int status);

/* Fill a struct with its defaults, struct_size included. */
void ef_engine_config_defaults(ef_engine_config* config);
void ef_session_config_defaults(ef_session_config* config);
void ef_stats_defaults(ef_stats* stats);
void ef_image_defaults(ef_image* image);
void ef_change_defaults(ef_change* change); /* since ABI 1.4 */

/* Connect to an engine, or start one. NULL stands for the defaults. */
ef_status ef_engine_open(const ef_engine_config* config, ef_engine** engine);
/* Ends calls of ef_session_open that wait, in any thread; they return EF_CANCELLED. */
void ef_engine_cancel(ef_engine* engine);
/*
 * Sessions that are open stay open. An engine that was started ends when the handle and the last session are freed, and that call waits for it,
 * 3 seconds at most. NULL is allowed.
 */
void ef_engine_free(ef_engine* engine);

ef_status ef_session_open(ef_engine* engine, const ef_session_config* config, ef_session** session);
/*
 * Push audio of the present segment; the first push after end_segment or interrupt opens one. format: ef_sample_format; count: samples per
 * channel; channels: 1 or 2, interleaved; rate_hz: 8000 to 192000, the same within a segment. Waits up to timeout_ms for room. *accepted (may
 * be NULL) is how many samples it took: push the rest again after EF_TIMEOUT.
 */
ef_status ef_session_push_audio(ef_session* session, const void* samples, size_t count, int format, uint32_t rate_hz, uint32_t channels,
                                uint32_t timeout_ms, size_t* accepted);
/*
 * Since ABI 1.4. What the person hears, such as a user's microphone: an engine whose model listens nods and looks attentive; another one returns
 * EF_BAD_INPUT. Arguments as for ef_session_push_audio. Of what waits for more than half a second the oldest is dropped. Does not wait.
 */
ef_status ef_session_push_user_audio(ef_session* session, const void* samples, size_t count, int format, uint32_t rate_hz, uint32_t channels);
/*
 * Since ABI 1.4. Another image or prompt, from the next block on. Waits up to timeout_ms for the engine to have read the image; after EF_TIMEOUT it may
 * still happen. EF_BAD_INPUT for an image that cannot be used, and nothing changes. EF_VERSION: the engine is older than this function.
 */
ef_status ef_session_change(ef_session* session, const ef_change* change, uint32_t timeout_ms);
/*
 * Since ABI 1.4. A sentence about the image that was last opened or changed to, such as that it is unlike those that the weights know; "": there is
 * nothing to say. Writes it to text[size], cut if it is longer and always ended by a 0; returns its length. size 0 writes nothing.
 */
size_t ef_session_remark(ef_session* session, char* text, size_t size);
/* The segment is complete. Its EF_EVENT_SEGMENT_END will come. Without a segment, no effect. */
ef_status ef_session_end_segment(ef_session* session);
/* Drop all that was not polled yet. *turn (may be NULL) is the turn of what is pushed from now on. No older frame is polled after it. */
ef_status ef_session_interrupt(ef_session* session, uint64_t* turn);
/* The next event; EF_TIMEOUT when there is none in time. After EF_EVENT_CLOSED: EF_CLOSED. */
ef_status ef_session_poll(ef_session* session, uint32_t timeout_ms, const ef_event** event);
/* Give an event back, from any thread. A video frame's memory is used again. NULL is allowed. */
void ef_event_release(const ef_event* event);
/* Write a video event into memory of yours, converted to the format of `image`, whose size must be the event's. */
ef_status ef_event_copy_image(const ef_event* event, const ef_image* image);
/* A descriptor for poll, select or epoll: readable when ef_session_poll(s, 0, e) may have something. It belongs to the session. */
int ef_session_fd(const ef_session* session);
/* Waits up to timeout_ms for the engine to answer. EF_UNAVAILABLE from EF_EVENT_RECOVERING to EF_EVENT_RECOVERED of a lost engine. */
ef_status ef_session_stats(ef_session* session, uint32_t timeout_ms, ef_stats* stats);
/* Every call of this session that waits now returns EF_CANCELLED; if none does, the next one that would wait. From any thread. */
void ef_session_cancel(ef_session* session);
/*
 * End the session. drain_ms 0: at once; calls that wait return EF_CLOSED. Else what was pushed is shown first, for so long at most: poll on
 * until EF_EVENT_CLOSED. Does not wait.
 */
ef_status ef_session_close(ef_session* session, uint32_t drain_ms);
/* Close it, if it is not closed, and free it. NULL is allowed. */
void ef_session_free(ef_session* session);

#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#ifdef __cplusplus
}
#endif
#endif
