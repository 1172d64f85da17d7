"""`python -m everface.serve.stream.remux TARGET`: an MP4 from standard input to an RTMP server or an HLS folder, packet by packet.

A process of its own: muxers that write to a network may hang in C code, where only a kill ends them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
from av.error import FFmpegError

PLAYLIST = "live.m3u8"
HLS = {"hls_time": "1", "hls_list_size": "10", "hls_flags": "delete_segments+independent_segments+temp_file"}


def remux(target: str) -> None:
    """Raises FFmpegError, OSError."""
    if "://" in target:
        out = av.open(target, "w", format="flv", options={"flvflags": "no_duration_filesize"})
    else:
        out = av.open(str(Path(target) / PLAYLIST), "w", format="hls", options=HLS)
    with out, av.open(sys.stdin.buffer, "r", format="mp4") as given:
        streams = {stream.index: out.add_stream_from_template(stream) for stream in given.streams}
        for packet in given.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream.index]
                out.mux(packet)


if __name__ == "__main__":
    try:
        remux(sys.argv[1])
    except (FFmpegError, OSError) as error:
        sys.exit(f"{error.strerror or error}")
