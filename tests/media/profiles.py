"""ICC profiles as bytes, made by hand: matrix RGB, gray, and a CMYK table (ICC.1:2010, section 10)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

D50 = (0.9642, 1.0, 0.8249)
# Colorants of Apple's Display P3 profile, adapted to D50, and of Adobe RGB (1998).
P3 = ((0.51512146, 0.24119568, -0.00105286), (0.29197693, 0.69224548, 0.04188538), (0.15710449, 0.06657410, 0.78407288))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(n * 65536)) for n in numbers)


def curve(*parameters: float) -> bytes:
    """One parameter: a gamma. Five: sRGB's form."""
    return b"para\0\0\0\0" + struct.pack(">HH", {1: 0, 5: 3}[len(parameters)], 0) + fixed(*parameters)


def text(words: str) -> bytes:
    raw = words.encode("utf-16-be")
    return b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(raw), 28) + raw


def profile(space: bytes, connection: bytes, tags: Mapping[bytes, bytes], kind: bytes = b"mntr") -> bytes:
    everything = {b"desc": text("made by hand"), b"cprt": text("none"), b"wtpt": b"XYZ \0\0\0\0" + fixed(*D50), **tags}
    table, data, begin = struct.pack(">I", len(everything)), b"", 128 + 4 + 12 * len(everything)
    for name, value in everything.items():
        table += name + struct.pack(">II", begin + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    head = struct.pack(">I4xI4s4s4s12x4s28x", begin + len(data), 0x04300000, kind, space, connection, b"acsp") + fixed(*D50)
    return head.ljust(128, b"\0") + table + data


def rgb(colorants: tuple[tuple[float, ...], ...], *parameters: float) -> bytes:
    tags = {name + b"XYZ": b"XYZ \0\0\0\0" + fixed(*color) for name, color in zip((b"r", b"g", b"b"), colorants)}
    return profile(b"RGB ", b"XYZ ", tags | {name + b"TRC": curve(*parameters) for name in (b"r", b"g", b"b")})


def gray(gamma: float) -> bytes:
    return profile(b"GRAY", b"XYZ ", {b"kTRC": curve(gamma)})


def cmyk(corners: Mapping[tuple[int, int, int, int], tuple[int, int, int]]) -> bytes:
    """Lab (L 0..100, a and b -128..127) of the corners of ink, linear in between; corners that are not given are black."""
    line = bytes(range(256))
    table = b""
    for i in range(16):
        corner = ((i >> 3) & 1, (i >> 2) & 1, (i >> 1) & 1, i & 1)
        light, a, b = corners.get(corner, (0, 0, 0))
        table += bytes([round(light * 2.55), a + 128, b + 128])
    tag = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1) + line * 4 + table + line * 3
    return profile(b"CMYK", b"Lab ", {b"A2B0": tag, b"A2B1": tag}, b"prtr")
