/* A clip with a face: embed IMAGE SPEECH.wav OUT.y4m OUT.wav [SOCKET]. The audio is mono WAV of 16 bits. Without SOCKET it starts an engine. */
#include <everface.h>
#include <stdio.h>
#include <string.h>

static int failed(const char* what) {
  fprintf(stderr, "%s: %s\n", what, ef_last_error());
  return 1;
}

int main(int argc, char** argv) {
  FILE* in = argc >= 5 ? fopen(argv[2], "rb") : NULL;
  char header[44];
  if (!in || fread(header, 1, 44, in) != 44) return fprintf(stderr, "usage: embed IMAGE SPEECH.wav OUT.y4m OUT.wav [SOCKET]\n"), 2;
  uint32_t rate, done = 0;
  memcpy(&rate, header + 24, 4);
  ef_engine_config engine_config;
  ef_engine_config_defaults(&engine_config);
  if (argc > 5) engine_config.socket_path = argv[5];
  ef_engine* engine;
  if (ef_engine_open(&engine_config, &engine)) return failed("the engine");
  ef_session_config config;
  ef_session_config_defaults(&config);
  config.image = argv[1];
  config.seed = 7;
  config.idle = config.paced = 0; /* a clip, as fast as it can be made */
  config.format = EF_I420;
  ef_session* session;
  if (ef_session_open(engine, &config, &session)) return failed("the session");
  FILE *video = fopen(argv[3], "wb"), *audio = fopen(argv[4], "wb");
  if (!video || !audio) return fprintf(stderr, "the output cannot be written\n"), 2;
  fwrite(header, 1, 44, audio);
  int16_t samples[4096];
  size_t count = 0, taken = 0;
  for (int open = 1, over = 0, first = 1; !over;) {
    if (open && taken == count) {
      count = fread(samples, 2, 4096, in), taken = 0;
      if (!(open = count > 0)) ef_session_end_segment(session);
    }
    size_t more = 0;
    if (open) ef_session_push_audio(session, samples + taken, count - taken, EF_INT16, rate, 1, 0, &more), taken += more;
    const ef_event* e;
    for (uint32_t wait_ms = open && more ? 0 : 1000; !over && ef_session_poll(session, wait_ms, &e) == EF_OK; wait_ms = 0) {
      if (e->type == EF_EVENT_VIDEO) {
        if (first) fprintf(video, "YUV4MPEG2 W%u H%u F25:1 Ip A1:1 C420jpeg XCOLORRANGE=LIMITED\n", e->width, e->height);
        first = fprintf(video, "FRAME\n") < 0;
        for (int p = 0; p < 3; p++) fwrite(e->plane[p], e->stride[p], p ? (e->height + 1) / 2 : e->height, video);
      }
      if (e->type == EF_EVENT_AUDIO) done += (uint32_t)(2 * fwrite(e->samples, 2, e->sample_count, audio));
      if (e->type == EF_EVENT_ERROR) fprintf(stderr, "%s\n", e->text);
      over = e->type == EF_EVENT_SEGMENT_END || e->type == EF_EVENT_CLOSED;
      ef_event_release(e);
    }
  }
  uint32_t riff = done + 36;
  fseek(audio, 4, SEEK_SET), fwrite(&riff, 4, 1, audio), fseek(audio, 40, SEEK_SET), fwrite(&done, 4, 1, audio);
  ef_session_free(session), ef_engine_free(engine);
  return fclose(in) | fclose(video) | fclose(audio);
}
