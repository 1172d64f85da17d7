// A clip with a face: embed IMAGE SPEECH.wav OUT.y4m OUT.wav [SOCKET]. The audio is mono WAV of 16 bits. Without SOCKET it starts an engine.
#include <array>
#include <cstring>
#include <everface.hpp>
#include <fstream>
#include <iostream>
#include <vector>

using namespace std::chrono_literals;

int main(int argc, char** argv) try {
  std::ifstream in(argc >= 5 ? argv[2] : "", std::ios::binary);
  std::array<char, 44> header;
  if (!in.read(header.data(), header.size())) return std::cerr << "usage: embed IMAGE SPEECH.wav OUT.y4m OUT.wav [SOCKET]\n", 2;
  const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
  std::vector<int16_t> samples(bytes.size() / 2);
  std::memcpy(samples.data(), bytes.data(), 2 * samples.size());
  uint32_t rate;
  std::memcpy(&rate, header.data() + 24, 4);

  everface::EngineConfig engine_config;
  if (argc > 5) engine_config.socket_path = argv[5];
  everface::Engine engine(engine_config);
  everface::SessionConfig config(argv[1]);
  config.seed = 7;
  config.idle = config.paced = 0;  // a clip, as fast as it can be made
  config.format = EF_I420;
  everface::Session session = engine.open(config);

  std::ofstream video(argv[3], std::ios::binary), audio(argv[4], std::ios::binary);
  audio.write(header.data(), header.size());
  uint32_t done = 0;
  bool first = true, open = true, over = false;
  for (size_t taken = 0; !over;) {
    taken += open ? session.push_audio(samples.data() + taken, samples.size() - taken, rate) : 0;
    if (open && taken == samples.size()) session.end_segment(), open = false;
    while (everface::Event e = session.poll(100ms)) {
      if (e->type == EF_EVENT_VIDEO) {
        if (first) video << "YUV4MPEG2 W" << e->width << " H" << e->height << " F25:1 Ip A1:1 C420jpeg XCOLORRANGE=LIMITED\n";
        first = false;
        video << "FRAME\n";
        for (int p = 0; p < 3; ++p) video.write(reinterpret_cast<const char*>(e->plane[p]), e->stride[p] * (p ? (e->height + 1) / 2 : e->height));
      }
      if (e->type == EF_EVENT_AUDIO) audio.write(static_cast<const char*>(e->samples), 2 * e->sample_count), done += 2 * e->sample_count;
      if (e->type == EF_EVENT_ERROR) std::cerr << e->text << '\n';
      over = over || e->type == EF_EVENT_SEGMENT_END || e->type == EF_EVENT_CLOSED;
    }
  }
  const uint32_t riff = done + 36;
  audio.seekp(4).write(reinterpret_cast<const char*>(&riff), 4).seekp(40).write(reinterpret_cast<const char*>(&done), 4);
} catch (const std::exception& error) {
  return std::cerr << "embed: " << error.what() << '\n', 1;
}
