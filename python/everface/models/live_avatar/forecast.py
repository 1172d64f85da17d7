"""What Live Avatar costs, for the planner: times of its roles, memory of its devices, and the paper's own figures to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from everface.models.live_avatar.names import DECODE, role_specs
from everface.models.live_avatar.step_costs import STEP_COSTS, StepCost
from everface.runtime.planning.forecast import Forecast, Times, simulate
from everface.runtime.planning.placement import place

WAITS = {4: 0}  # block 4 carries the attention sink that block 0 brings back


def block_times(
    steps: int, step_ms: float, decode_ms: float, transfer_ms: float = 0.5, prepare_ms: float = 0.0, jitter: float = 0.0
) -> Times:
    """Times of a block in milliseconds: one denoising step, decoding, one transfer, audio features. Raises BadInput."""
    role_ms = {role.name: decode_ms if role.name == DECODE else step_ms for role in role_specs(steps)}
    return Times(role_ms, transfer_ms, prepare_ms, jitter, waits=WAITS)


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes of device memory. What has no session in its name is taken once, whatever the number of sessions."""

    process: int  # of any process on a device: the CUDA context, its libraries, what an allocator cannot use
    weights: int  # of the transformer, on a device with steps, however many
    step_work: int  # activations of a forward
    session_ring: int  # keys and values of one step
    session_sink: int  # keys and values of image and prompt, on a device with steps
    decoder: int  # its weights
    decode_work: int
    session_decode: int  # what its convolutions remember
    front: int  # the session's own process, beside the first device's roles
    text: int = 0  # of `weights`, what Deployment(text_weights="host") keeps in host memory
    text_layer: int = 0  # of `text`, what is on the device at a time then
    text_on_host: bool = False
    encoder_on_cpu: bool = False  # Deployment(image_encoder="cpu"): then the session's process is not on a device

    def __call__(self, roles: Sequence[str], sessions: int, first: bool) -> dict[str, int]:
        """What a device with these roles holds, by name: `everface.runtime.planning.planner.Memory`."""
        steps = sum(role != DECODE for role in roles)
        parts = {"process": self.process}
        if steps:
            parts |= {"weights without text": self.weights - self.text + self.text_layer} if self.text_on_host else {"weights": self.weights}
            parts |= {"forward": self.step_work, "sink": sessions * self.session_sink}
            parts[f"{steps * sessions} KV rings"] = steps * sessions * self.session_ring
        if DECODE in roles:
            parts |= {"decoder": self.decoder + self.decode_work, "decoder streams": sessions * self.session_decode}
        if first and not self.encoder_on_cpu:
            parts["session process"] = self.front
        return parts


# The paper's figures (arXiv 2512.04677 v5, tables 3 and 5): name, devices, steps, ms of a step and of decoding, published fps and
# first frame. Decoding is what its first frames leave beyond the steps.
PAPER_STEP_MS, PAPER_DECODE_MS = 265.5, 150.0
PAPER = (
    ("kernels, 4 steps", 5, 4, PAPER_STEP_MS, PAPER_DECODE_MS, 45.2, 1210.0),
    ("kernels, 3 steps", 4, 3, PAPER_STEP_MS, PAPER_DECODE_MS, 45.2, 950.0),
    ("kernels, 2 steps", 3, 2, PAPER_STEP_MS, PAPER_DECODE_MS, 45.2, 680.0),
    ("before the kernels", 5, 4, 574.7, 237.5, 20.88, None),
)


def paper_table() -> list[tuple[str, float, float, float, float | None]]:
    """Rows (name, simulated fps, published fps, simulated first frame in ms, published)."""
    rows = []
    for name, devices, steps, step_ms, decode_ms, fps, first_ms in PAPER:
        forecast = simulate(place(role_specs(steps), devices), block_times(steps, step_ms, decode_ms))
        rows.append((name, forecast.fps, fps, forecast.first_frame_ms, first_ms))
    return rows


def step_cost_table(
    steps: int, devices: int, transfer_ms: float = 0.5, jitter: float = 0.0, sessions: int = 1, live: bool = False
) -> list[tuple[str, StepCost, tuple[Forecast, ...]]]:
    """Rows (configuration, its step cost, forecasts on 1 to `devices` devices) from the sums of step_costs.py. Raises BadInput for more
    devices than roles."""
    placements = [place(role_specs(steps), n) for n in range(1, devices + 1)]
    rows = []
    for name, cost in STEP_COSTS.items():
        times = block_times(steps, cost["step_ms"], cost["decode_ms"], transfer_ms, jitter=jitter)
        rows.append((name, cost, tuple(simulate(placement, times, sessions=sessions, live=live) for placement in placements)))
    return rows
