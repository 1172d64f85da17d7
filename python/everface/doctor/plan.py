"""`everface doctor --plan`: the frame rate and memory of a released model on every number of devices."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from everface.core.errors import BadInput

if TYPE_CHECKING:
    from everface.models.live_avatar.forecast import DeviceMemory
    from everface.runtime.planning.forecast import Times


@dataclass(frozen=True)
class Question:
    """The arguments of `doctor --plan`: the devices, their measured times, and the load."""

    devices: int | None = None  # None: as many as this machine has
    memory_gib: float | None = None  # of each device; None: as detected
    model: str = "live-avatar"  # or livetalk-1.3b
    step_ms: float | None = None  # one forward; by default the paper's, of LiveTalk that of a 24 GB card as assumed, as for decoding
    decode_ms: float | None = None  # decoding a block
    sampler: str = "official"
    dtype: str = "bfloat16"  # bfloat16, fp8 or fp8-attention
    sessions: int = 1
    size: tuple[int, int] | None = None  # height, width; None: the size that the model was released for


@dataclass(frozen=True)
class _Subject:
    """A model in the terms of the planner."""

    roles: list[str]
    times: Times
    memory: Any  # a Memory, as a dataclass
    what: str  # the model and its size
    step_ms: float
    decode_ms: float
    smaller: tuple[tuple[str, dict[str, bool]], ...] = field(default_factory=tuple)  # places of a deployment that save memory


def plan(question: Question) -> int:
    """Print a forecast of the model for each number of devices and mark the best. Where nothing fits, the same with the text
    weights in host memory, then with the image encoder on the CPU as well. Returns 0; raises BadInput if that does not fit either."""
    from everface.runtime.planning.planner import GIB, best, explain, options, refuse

    subject = _live_talk(question) if question.model == "livetalk-1.3b" else _live_avatar(question)
    roles, times, memory = subject.roles, subject.times, subject.memory
    limits_gib, fps = _limits(question), times.format.fps
    used = min(len(limits_gib), len(roles))
    found = options(roles, limits_gib[:used], memory, times, question.sessions)
    chosen, places = best(found), list[str]()
    for place, smaller in subject.smaller:
        if chosen is None:
            places.append(place)
            memory = replace(memory, **smaller)
            found = options(roles, limits_gib[:used], memory, times, question.sessions)
            chosen = best(found)
    if chosen is None:
        raise refuse(found, memory, question.sessions)
    deployment = f", with Deployment({', '.join(places)})" if places else ""
    print(
        f"{subject.what}, weights in {question.dtype}{deployment}, {question.sessions} session(s); "
        f"a forward takes {subject.step_ms:g} ms, decoding a block {subject.decode_ms:g} ms"
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
    live, device = int(chosen.forecast.fps / fps), chosen.fullest()
    parts = memory(chosen.placement.devices[device], question.sessions, not device)
    left = chosen.limits_gib[device] - chosen.memory_gib[device]
    print(f"\n* best: {explain(chosen, found, times)}.")
    print(f"It fits, with {left:.1f} GiB left on the fullest device: {' + '.join(f'{name} {size / GIB:.1f}' for name, size in parts.items())}.")
    print(f"It serves {live} live session(s) at {fps} frames per second. Memory is calculated, not measured; times are as given.")
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


def _live_avatar(question: Question) -> _Subject:
    from everface.core.config import StreamConfig
    from everface.models.live_avatar.forecast import PAPER_DECODE_MS, PAPER_STEP_MS, block_times
    from everface.models.live_avatar.names import role_specs

    steps, size = StreamConfig(sampler=question.sampler).steps, question.size or (384, 704)
    step_ms, decode_ms = question.step_ms or PAPER_STEP_MS, question.decode_ms or PAPER_DECODE_MS
    smaller = (('text_weights="host"', {"text_on_host": True}), ('image_encoder="cpu"', {"encoder_on_cpu": True}))
    return _Subject(
        [role.name for role in role_specs(steps)], block_times(steps, step_ms, decode_ms), _memory(question.dtype, size),
        f"{steps} steps and the decoder at {size[1]}x{size[0]}", step_ms, decode_ms, smaller,
    )  # fmt: skip


def _live_talk(question: Question) -> _Subject:
    from everface.core.config import check_size
    from everface.core.live_talk_config import LiveTalkConfig
    from everface.models.live_talk import forecast
    from everface.models.live_talk.names import ROLES, STEPS

    size = check_size(*(question.size or forecast.SIZE))
    card = forecast.CARDS[question.dtype != "bfloat16"]
    step_ms = question.step_ms or forecast.forward_ms(card, LiveTalkConfig(), size)
    decode_ms = question.decode_ms or forecast.decode_ms(card, size)
    return _Subject(
        [role.name for role in ROLES], forecast.block_times(step_ms, decode_ms), forecast.device_memory(size, question.dtype),
        f"LiveTalk-1.3B, {STEPS} steps, the clean forward and the decoder at {size[1]}x{size[0]}", round(step_ms, 1), round(decode_ms, 1),
        (('image_encoder="cpu"', {"encoder_on_cpu": True}),),
    )  # fmt: skip


def _memory(dtype: str, size: tuple[int, int]) -> DeviceMemory:
    """Bytes that the parts of the official model take."""
    from everface.core.config import ModelConfig, check_size
    from everface.models.live_avatar.forecast import DeviceMemory
    from everface.networks import sizes
    from everface.runtime.planning.planner import GIB

    model, (height, width) = ModelConfig(), check_size(*size)
    h, w = height // model.vae.stride[1], width // model.vae.stride[2]
    narrow = dtype == "fp8-attention"
    decoder, stream = sizes.decoder_sizes(model.vae, h, w)
    return DeviceMemory(
        process=GIB,  # an estimate: context and libraries 0.5, fragmentation 0.5
        weights=sizes.dit_bytes(model.dit, quantized=dtype != "bfloat16"),
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
