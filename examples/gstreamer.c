/* A face in a GStreamer pipeline: gstreamer IMAGE SPEECH.wav PIPELINE [SOCKET]. It feeds the appsrcs "video" and "audio" of the pipeline, as in
 * "appsrc name=video ! videoconvert ! autovideosink appsrc name=audio ! audioconvert ! autoaudiosink". No frame is copied. Audio: mono WAV, 16 bits. */
#include <everface.h>
#include <gst/app/gstappsrc.h>
#include <gst/video/video.h>
#include <stdio.h>
#include <string.h>

static void release(gpointer event) { ef_event_release(event); }

static void push(GstElement* source, const ef_event* e, const void* data, gsize size, GstCaps* caps) {
  GstBuffer* buffer = gst_buffer_new_wrapped_full(GST_MEMORY_FLAG_READONLY, (gpointer)data, size, 0, size, (gpointer)e, release);
  GST_BUFFER_PTS(buffer) = (GstClockTime)(e->time_s * GST_SECOND);
  gsize offset[4] = {0};
  gint stride[4] = {(gint)e->stride[0]}; /* rows without gaps; GStreamer's own are padded */
  if (e->type == EF_EVENT_VIDEO) gst_buffer_add_video_meta_full(buffer, 0, GST_VIDEO_FORMAT_RGB, e->width, e->height, 1, offset, stride);
  gst_app_src_set_caps(GST_APP_SRC(source), caps), gst_caps_unref(caps);
  gst_app_src_push_buffer(GST_APP_SRC(source), buffer);
}

int main(int argc, char** argv) {
  FILE* in = argc >= 4 ? fopen(argv[2], "rb") : NULL;
  char header[44];
  if (!in || fread(header, 1, 44, in) != 44) return fprintf(stderr, "usage: gstreamer IMAGE SPEECH.wav PIPELINE [SOCKET]\n"), 2;
  gint rate;
  memcpy(&rate, header + 24, 4);
  gst_init(NULL, NULL);
  GstElement* pipeline = gst_parse_launch(argv[3], NULL);
  GstElement* video = gst_bin_get_by_name(GST_BIN(pipeline), "video");
  GstElement* audio = gst_bin_get_by_name(GST_BIN(pipeline), "audio");
  g_object_set(video, "format", GST_FORMAT_TIME, NULL), g_object_set(audio, "format", GST_FORMAT_TIME, NULL);
  ef_engine_config engine_config; ef_session_config config;
  ef_engine_config_defaults(&engine_config), ef_session_config_defaults(&config);
  if (argc > 4) engine_config.socket_path = argv[4];
  config.image = argv[1];
  config.idle = config.paced = 0, config.slots = 32; /* the pipeline sets the pace and holds so many frames at most */
  ef_engine* engine; ef_session* session;
  if (ef_engine_open(&engine_config, &engine) || ef_session_open(engine, &config, &session)) return fprintf(stderr, "%s\n", ef_last_error()), 1;
  gst_element_set_state(pipeline, GST_STATE_PLAYING);
  int16_t samples[4096];
  size_t count = 0, taken = 0;
  for (int open = 1, over = 0; !over;) {
    if (open && taken == count && (taken = 0, open = (count = fread(samples, 2, 4096, in)) > 0) == 0) ef_session_end_segment(session);
    size_t more = 0;
    if (open) ef_session_push_audio(session, samples + taken, count - taken, EF_INT16, (uint32_t)rate, 1, 0, &more), taken += more;
    for (const ef_event* e; !over && ef_session_poll(session, more ? 0 : 100, &e) == EF_OK;) {
      over = e->type == EF_EVENT_SEGMENT_END || e->type == EF_EVENT_CLOSED;
      if (e->type == EF_EVENT_VIDEO) push(video, e, e->plane[0], e->stride[0] * e->height, gst_caps_new_simple("video/x-raw", "format", G_TYPE_STRING, "RGB",
          "width", G_TYPE_INT, e->width, "height", G_TYPE_INT, e->height, "framerate", GST_TYPE_FRACTION, 25, 1, NULL));
      else if (e->type == EF_EVENT_AUDIO) push(audio, e, e->samples, 2 * e->sample_count, gst_caps_new_simple("audio/x-raw", "format", G_TYPE_STRING, "S16LE",
          "layout", G_TYPE_STRING, "interleaved", "rate", G_TYPE_INT, rate, "channels", G_TYPE_INT, 1, NULL));
      else ef_event_release(e);
    }
  }
  gst_app_src_end_of_stream(GST_APP_SRC(video)), gst_app_src_end_of_stream(GST_APP_SRC(audio));
  gst_message_unref(gst_bus_timed_pop_filtered(gst_element_get_bus(pipeline), GST_CLOCK_TIME_NONE, GST_MESSAGE_EOS | GST_MESSAGE_ERROR));
  ef_session_free(session), ef_engine_free(engine); /* its frames may live longer */
  return gst_element_set_state(pipeline, GST_STATE_NULL) == GST_STATE_CHANGE_FAILURE;
}
