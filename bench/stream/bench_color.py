"""Conversion of RGB24 frames: libeverface's against swscale's, as PyAV binds it, one thread each.

    python -m pytest bench/stream/bench_color.py --benchmark-group-by param:size,param:to --benchmark-columns median,min
    python -m pytest bench/stream/bench_color.py -s --benchmark-json FILE

`extra_info` has milliseconds a frame and GB/s, of bytes read and written. Both convert to BT.709 in limited range and write into memory that is
there already, or, for swscale, into a frame that PyAV makes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from bench.rows import commit
from bench.stream.client_library import install

from everface.client.engine_client import EngineClient
from everface.client.library import load_library

SIZES = {"256x256": (256, 256), "704x384": (384, 704)}
FORMATS = {"NV12": ("nv12", 1.5), "I420": ("yuv420p", 1.5), "BGRA": ("bgra", 4.0)}  # swscale's name, bytes a pixel


@pytest.fixture(scope="session")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("client") / "prefix")


def ours(prefix: Path, height: int, width: int, to: str) -> tuple[Callable[[], object], list[Any]]:
    """A conversion, and what it needs to be kept."""
    ffi, lib = load_library(prefix)
    engine = EngineClient(fake=True, prefix=prefix)
    session = engine.open_live("face.png", size=(height, width))
    event = ffi.new("const ef_event **")
    while lib.ef_session_poll(session._handle, 1000, event) or event[0].type != lib.EF_EVENT_VIDEO:
        lib.ef_event_release(event[0])
    image = ffi.new("ef_image *")
    lib.ef_image_defaults(image)
    image.format, image.width, image.height = getattr(lib, f"EF_{to}"), width, height
    rows = {"NV12": (width, width), "I420": (width, width // 2, width // 2), "BGRA": (4 * width,)}[to]
    memory = [np.zeros((height // (2 if p else 1), stride), np.uint8) for p, stride in enumerate(rows)]
    for p, plane in enumerate(memory):
        image.plane[p], image.stride[p] = ffi.cast("uint8_t *", plane.ctypes.data), plane.shape[1]
    return lambda: lib.ef_event_copy_image(event[0], image), [memory, session, engine]


def swscale(height: int, width: int, to: str) -> Callable[[], object]:
    rgb = av.VideoFrame.from_ndarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8), "rgb24")
    reformatter = VideoReformatter()
    options = {} if to == "BGRA" else {"dst_colorspace": Colorspace.ITU709, "dst_color_range": ColorRange.MPEG}
    return lambda: reformatter.reformat(rgb, format=FORMATS[to][0], threads=1, **options)  # type: ignore[arg-type]  the stub of PyAV wants each by name


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("by", ["everface", "swscale"])
def test_color(benchmark: Any, prefix: Path, by: str, to: str, size: str) -> None:
    height, width = SIZES[size]
    convert, _kept = ours(prefix, height, width, to) if by == "everface" else (swscale(height, width, to), [])
    benchmark(convert)
    if benchmark.stats is None:  # --benchmark-disable
        return
    median_s = benchmark.stats.stats.median
    info = {"ms": 1e3 * median_s, "gb_per_s": height * width * (3 + FORMATS[to][1]) / median_s / 1e9}
    benchmark.extra_info.update(commit=commit(), **info)
    print(f"\n{by} {to} {size}  " + "  ".join(f"{name} {value:.3g}" for name, value in info.items()))
