"""`everface serve`: its arguments, and the call."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from everface import __version__
from everface.cli.flags import add_model_flags, count, deployment, sampler
from everface.core import env
from everface.core.config import StreamConfig
from everface.core.errors import Unavailable

MORE = (
    "Open its page in a browser to speak to the face; programs use its WebSocket and its HTTP routes (docs/serve.md). It needs the extra "
    "everface[serve]. The first SIGTERM or Ctrl-C lets running sessions end, for 20 s at most, the second ends it at once; then it exits "
    "with 0. Exit code 2: an error that you can fix, explained in one line."
)


def add_serve(add: Callable[..., argparse.ArgumentParser]) -> None:
    p = add("serve", serve, "serve live sessions and videos over HTTP, with a page to talk to", "serve --open", MORE)
    p.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s); any that others can reach needs a token")
    p.add_argument("--port", type=int, default=8000, help="port to listen at, 0: any that is free (%(default)s)")
    p.add_argument("--open", action="store_true", help="open the page in a browser")
    token = "what clients must send, 16 or more letters and digits; EVERFACE_TOKEN keeps it out of the list of processes"
    p.add_argument("--token", help=token)
    p.add_argument("--max-sessions", type=count, default=4, metavar="N", help="live sessions at once (%(default)s)")
    p.add_argument("--max-jobs", type=count, default=8, metavar="N", help="videos that wait to be rendered (%(default)s)")
    p.add_argument("--max-upload-mb", type=count, default=32, metavar="MB", help="size of an image and an audio file together (%(default)s)")
    p.add_argument("--max-audio-s", type=count, default=600, metavar="S", help="length of a video (%(default)s)")
    p.add_argument("--idle-s", type=count, default=300, metavar="S", help="end a live session when its client is silent for so long (%(default)s)")
    p.add_argument("--lifetime-s", type=count, default=3600, metavar="S", help="end a live session after so long (%(default)s)")
    push = "let sessions be pushed to RTMP addresses that begin so, or into this folder as HLS; may be repeated"
    p.add_argument("--push-to", action="append", default=[], metavar="PLACE", help=push)
    add_model_flags(p)


def serve(args: argparse.Namespace) -> None:
    """Run the server until a signal ends it. Raises EverfaceError."""
    try:
        from everface.serve.server import serve
        from everface.serve.settings import Limits, ServeSettings
    except ModuleNotFoundError as error:
        raise Unavailable(f"the server needs the package {error.name}: run pip install 'everface[serve]'") from None
    import dataclasses

    limits = Limits(
        sessions=args.max_sessions, jobs=args.max_jobs, upload_bytes=args.max_upload_mb << 20, audio_s=args.max_audio_s,
        idle_s=args.idle_s, lifetime_s=args.lifetime_s,
    )  # fmt: skip
    stream = StreamConfig(size=args.size, sampler=sampler(args, live=True))
    device = dataclasses.replace(deployment(args, live=True), sessions=args.max_sessions + 1)  # and one for the render
    token = args.token or env.token()
    serve(ServeSettings(args.host, args.port, token, args.weights, args.lora, stream, device, limits, tuple(args.push_to), __version__), args.open)
