/* Times of blocks through libeverface: border SOCKET BLOCKS. A line a block: microseconds from the push of its audio to its last frame. Then the
 * frames that were not read in the memory that is shared with the engine, which would be a copy. */
#include <everface.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BLOCK = 7680, FRAMES = 12, RATE_HZ = 16000 };

static double now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e6 * (double)t.tv_sec + 1e-3 * (double)t.tv_nsec;
}

static int shared(const uint8_t* at) {
  static size_t begin, end;
  if ((size_t)at >= begin && (size_t)at < end) return 1;
  char line[512];
  FILE* maps = fopen("/proc/self/maps", "r");
  while (maps && fgets(line, sizeof line, maps))
    if (strstr(line, "everface frames") && sscanf(line, "%zx-%zx", &begin, &end) == 2) break;
  if (maps) fclose(maps);
  return (size_t)at >= begin && (size_t)at < end;
}

int main(int argc, char** argv) {
  ef_engine_config engine_config;
  ef_session_config config;
  ef_engine_config_defaults(&engine_config);
  ef_session_config_defaults(&config);
  engine_config.socket_path = argc > 2 ? argv[1] : "";
  config.image = "none";
  config.idle = config.paced = 0;
  ef_engine* engine;
  ef_session* session;
  if (ef_engine_open(&engine_config, &engine) || ef_session_open(engine, &config, &session)) return fprintf(stderr, "%s\n", ef_last_error()), 1;
  static const int16_t samples[BLOCK];
  int copies = 0;
  for (int block = 0; block < atoi(argv[2]); ++block) {
    const double began_us = now_us();
    const ef_event* e;
    if (ef_session_push_audio(session, samples, BLOCK, EF_INT16, RATE_HZ, 1, 10000, NULL)) return fprintf(stderr, "%s\n", ef_last_error()), 1;
    for (int frames = 0; frames < FRAMES; ef_event_release(e)) {
      if (ef_session_poll(session, 10000, &e)) return fprintf(stderr, "%s\n", ef_last_error()), 1;
      frames += e->type == EF_EVENT_VIDEO;
      copies += e->type == EF_EVENT_VIDEO && !shared(e->plane[0]);
    }
    printf("%.1f\n", now_us() - began_us);
  }
  printf("%d\n", copies);
  ef_session_free(session);
  ef_engine_free(engine);
  return 0;
}
