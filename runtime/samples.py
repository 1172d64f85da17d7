"""Audio as callers push it, checked: what can only be guessed at is refused with the way to convert it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from everface.core.errors import BadInput

MAX_PEAK = 8.0  # full scale is 1: a hot recording may be 18 dB over it, what is further over has another scale
SCALES = {"int8": " / 128", "int16": " / 32768", "int32": " / 2147483648"}
BYTES = "their format is not known: numpy.frombuffer(x, numpy.float32) reads floats, numpy.frombuffer(x, '<i2') / 32768 16 bits"


def check_samples(audio: Any, rate_hz: int, channels: int = 1, user_audio: bool = False) -> torch.Tensor:
    """The samples as a float32 tensor that needs no gradient and may share memory with `audio`: [S], of several channels [channels, S].
    `user_audio`: the second channel is what the person hears; it may be missing, as silence.

    A numpy array or a tensor of any strides, on any device, is accepted. Raises BadInput for anything else: other types and dtypes, other
    byte orders, another shape, values that are not finite, and a peak above MAX_PEAK.
    """
    what = "mono float32 samples" if channels == 1 else f"float32 samples [{channels}, S], a row for each speaker,"
    if user_audio:
        what = "mono float32 samples, or [2, S] with what the person hears in the second row,"
    need = f"push {what} at {rate_hz} Hz, full scale 1, as a numpy array or a tensor"
    is_array, is_tensor, kind = isinstance(audio, np.ndarray), isinstance(audio, torch.Tensor), type(audio).__name__
    if kind in ("bytes", "bytearray", "memoryview"):
        raise BadInput(f"audio as {kind} cannot be used, because {BYTES}")
    if not (is_array or is_tensor):
        raise BadInput(f"audio as {kind} cannot be used: {need}")
    dtype = str(audio.dtype).removeprefix("torch.")
    kind = f"audio of {dtype} {list(audio.shape)}"
    if is_tensor and (audio.layout != torch.strided or audio.is_meta):
        raise BadInput(f"{kind} without a value in memory for each sample cannot be used: {need}")
    if is_array and not audio.dtype.isnative:
        raise BadInput(f"{kind} in the byte order of another machine cannot be used: convert it with x.astype(numpy.float32)")
    if dtype != "float32":
        raise BadInput(f"{kind} cannot be used, because it is not float32: {_conversion(dtype, is_tensor)}")
    if user_audio and audio.ndim == 1:
        voice_S = check_samples(audio, rate_hz)
        return torch.stack([voice_S, torch.zeros_like(voice_S)])
    if channels > 1 and (audio.ndim != 2 or len(audio) != channels):
        raise BadInput(f"{kind} cannot be used, because the session has {channels} {'channels' if user_audio else 'speakers'}: {need}")
    if channels == 1 and audio.ndim != 1:
        raise BadInput(f"{kind} cannot be used, because it does not have one axis: {need}")
    return _check_values(_as_tensor(audio) if is_array else audio.detach())


def _as_tensor(audio_S: Any) -> torch.Tensor:
    """torch takes no negative strides, and warns of memory that it must not write."""
    return torch.as_tensor(audio_S if audio_S.flags.writeable and audio_S.strides[0] >= 0 else audio_S.copy())


def _conversion(dtype: str, is_tensor: bool) -> str:
    convert = "x.float()" if is_tensor else "x.astype(numpy.float32)"
    if dtype == "uint8":
        return f"convert it with ({convert} - 128) / 128"
    return f"convert it with {convert}{SCALES.get(dtype, '')}"


def _check_values(audio_S: torch.Tensor) -> torch.Tensor:
    if not audio_S.numel():
        return audio_S
    low, high = (float(value) for value in audio_S.aminmax())  # NaN, if there is one
    if not (low > float("-inf") and high < float("inf")):
        raise BadInput("the audio holds values that are not finite: repair it before pushing")
    peak = max(-low, high)
    if peak > MAX_PEAK:
        raise BadInput(
            f"the audio peaks at {peak:g} where full scale is 1: divide samples of 16 bits by 32768, or turn down a recording that is "
            f"more than {MAX_PEAK:g} times too loud"
        )
    return audio_S
