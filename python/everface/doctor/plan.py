"""`everface doctor --plan`: the frame rate and memory of the official model on every number of devices."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from everface.core.errors import BadInput

if TYPE_CHECKING:
    from everface.models.live_avatar.forecast import DeviceMemory


@dataclass(frozen=True)
class Question:
    """The arguments of `doctor --plan`: the devices, their measured times, and the load."""

    devices: int | None = None  # None: as many as this machine has
    memory_gib: float | None = None  # of each device; None: as detected
    step_ms: float = 265.5  # one forward; the default is the paper's, as for decoding
    decode_ms: float = 150.0  # decoding a block
    sampler: str = "official"
    dtype: str = "bf16"  # bf16, fp8 or fp8-attention
    sessions: int = 1
    size: tuple[int, int] = (384, 704)  # height, width


def plan(question: Question) -> int:
    """Print a forecast of the official model for each number of devices and mark the best. Where nothing fits, the same with the text
    weights in host memory, then with the image encoder on the CPU as well. Returns 0; raises BadInput if that does not fit either."""
    from everface.core.config import FPS, StreamConfig
    from everface.models.live_avatar.forecast import block_times
    from everface.models.live_avatar.names import role_specs
    from everface.runtime.planning.planner import GIB, best, explain, options, refuse

    steps = StreamConfig(sampler=question.sampler).steps
    roles, times = [role.name for role in role_specs(steps)], block_times(steps, question.step_ms, question.decode_ms)
    limits_gib, memory = _limits(question), _memory(question)
    used = min(len(limits_gib), len(roles))
    found = options(roles, limits_gib[:used], memory, times, question.sessions)
    chosen, places = best(found), list[str]()
    for place, smaller in (('text_weights="host"', {"text_on_host": True}), ('image_encoder="cpu"', {"encoder_on_cpu": True})):
        if chosen is None:
            places.append(place)
            memory = replace(memory, **smaller)
            found = options(roles, limits_gib[:used], memory, times, question.sessions)
            chosen = best(found)
    if chosen is None:
        raise refuse(found, memory, question.sessions)
    height, width = question.size
    deployment = f", with Deployment({', '.join(places)})" if places else ""
    print(
        f"{steps} steps and the decoder at {width}x{height}, weights in {question.dtype}{deployment}, {question.sessions} session(s); "
        f"a forward takes {question.step_ms:g} ms, decoding a block {question.decode_ms:g} ms"
    )
    print(f"\n{'devices':<9}{'fps':>6}  {'first frame':>11}  {'GiB of each':<32}  roles")
    for count in range(1, used + 1):
        here = [option for option in found if len(option.placement.devices) == count]
        row = best(here) or min(here, key=lambda option: option.rank)
        held = " ".join(f"{m:.1f}{'' if m <= limit else '!'}" for m, limit in zip(row.memory_gib, row.limits_gib))
        rate = f"{row.forecast.fps:6.1f}  {row.forecast.first_frame_ms:8.0f} ms" if row.fits else f"{'does not fit':>19}"
        print(f"{f'{count} *' if row is chosen else count:<9}{rate}  {held:<32}  {row.shape()}")
    if len(limits_gib) > used:
        rest = f"{used + 1}-{len(limits_gib)}" if len(limits_gib) > used + 1 else f"{used + 1}"
        print(f"{rest:<9}as {used}: there are {used} roles; the other devices can run a second pipeline")
    live, device = int(chosen.forecast.fps / FPS), chosen.fullest()
    parts = memory(chosen.placement.devices[device], question.sessions, not device)
    left = chosen.limits_gib[device] - chosen.memory_gib[device]
    print(f"\n* best: {explain(chosen, found, times)}.")
    print(f"It fits, with {left:.1f} GiB left on the fullest device: {' + '.join(f'{name} {size / GIB:.1f}' for name, size in parts.items())}.")
    print(f"It serves {live} live session(s) at {FPS} frames per second. Memory is calculated, not measured; times are as given.")
    return 0


def _limits(question: Question) -> list[float]:
    """Memory of each device in GiB: as given, else as torch reports it."""
    import torch

    here = [torch.cuda.get_device_properties(i).total_memory / 2**30 for i in range(torch.cuda.device_count())]
    count = question.devices or len(here)
    if not count:
        raise BadInput("this machine has no CUDA device to plan for: describe some, as in --devices 5 --memory 80")
    if count > len(here) and question.memory_gib is None:
        raise BadInput(f"this machine has {len(here)} CUDA devices, not {count}: give the memory of each, as in --memory 80")
    return [question.memory_gib] * count if question.memory_gib is not None else here[:count]


def _memory(question: Question) -> DeviceMemory:
    """Bytes that the parts of the official model take."""
    from everface.core.config import ModelConfig, check_size
    from everface.models.live_avatar.forecast import DeviceMemory
    from everface.networks import sizes
    from everface.runtime.planning.planner import GIB

    model, (height, width) = ModelConfig(), check_size(*question.size)
    h, w = height // model.vae.stride[1], width // model.vae.stride[2]
    narrow = question.dtype == "fp8-attention"
    decoder, stream = sizes.decoder_sizes(model.vae, h, w)
    return DeviceMemory(
        process=GIB,  # an estimate: context and libraries 0.5, fragmentation 0.5
        weights=sizes.dit_bytes(model.dit, quantized=question.dtype != "bf16"),
        text=sizes.text_bytes(model.dit),
        text_layer=sizes.text_bytes(model.dit) // model.dit.num_layers,
        step_work=4 * sizes.step_work_values(model.dit, h, w),
        session_ring=(1 if narrow else 2) * sizes.ring_values(model.dit, h, w),
        session_sink=2 * sizes.sink_values(model.dit, h, w),
        decoder=2 * decoder,
        decode_work=2 * sizes.decode_work_values(model.vae, h, w),
        session_decode=2 * stream,
        front=GIB + 4 * sizes.encode_work_values(model.vae, h, w),  # the caller's process, with its own context
    )
