"""A function of tensors, captured once as a CUDA graph and replayed for ever; on a CPU, the function itself.

What is constant the function closes over; what changes comes through input slots, tensors that are allocated once and copied into.
Integers become int64 tensors of no dimension, filled on the device. Nothing here waits for the device but a capture.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch

from everface.core.errors import Unavailable
from everface.core.log import log

Value = torch.Tensor | int
Function = Callable[..., tuple[torch.Tensor, ...]]
WARM_UPS = 2  # eager runs before a capture: they compile kernels and let libraries choose theirs, which a capture cannot


class GraphPool:
    """What the captures of one device share: a memory pool, as no two of them run at a time, and the stream they are made on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.captures = device.type == "cuda"
        self.pool = torch.cuda.graph_pool_handle() if self.captures else None
        self.stream = torch.cuda.Stream(device) if self.captures else None


class CapturedGraph:
    """`function(key, **inputs)` -> tensors, over the slots given by name.

    `key` is what may not vary within one capture: each key gets its own, on first use. The function may write into what it closes over,
    and must do so the same way when it is called again with the same inputs: a first use calls it several times. It must not read
    a tensor's value, nor branch on one. On a CPU it gets its inputs as they came, integers as integers.
    """

    def __init__(self, function: Function, slots: Mapping[str, torch.Tensor], graph_pool: GraphPool) -> None:
        self.function, self.slots, self.graph_pool = function, dict(slots), graph_pool
        self._captured: dict[Hashable, tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...]]] = {}

    def run(self, key: Hashable = None, **inputs: Value) -> tuple[torch.Tensor, ...]:
        """What the function answers, the caller's to keep. Tensors on the CPU must be pinned for their copy not to wait."""
        if not self.graph_pool.captures:
            return self.function(key, **inputs)
        for name, value in inputs.items():
            if isinstance(value, int):
                self.slots[name].fill_(value)
            else:
                self.slots[name].copy_(value, non_blocking=True)
        if key not in self._captured:
            self._captured[key] = self._capture(key)
        graph, answer = self._captured[key]
        graph.replay()
        return tuple(t.clone() for t in answer)  # the pool is the next replay's too

    def _capture(self, key: Hashable) -> tuple[torch.cuda.CUDAGraph, tuple[torch.Tensor, ...]]:
        side, graph = self.graph_pool.stream, torch.cuda.CUDAGraph()
        assert side is not None
        try:
            with torch.cuda.device(self.graph_pool.device):
                side.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(side):
                    for _ in range(WARM_UPS):
                        self.function(key, **self.slots)
                torch.cuda.current_stream().wait_stream(side)
                # thread_local: other threads of this process go on with the device meanwhile
                with torch.cuda.graph(graph, pool=self.graph_pool.pool, stream=side, capture_error_mode="thread_local"):
                    answer = self.function(key, **self.slots)
        except torch.OutOfMemoryError:
            raise Unavailable(f"a step does not fit beside the caches on {self.graph_pool.device}: allow fewer sessions") from None
        log.info("captured a step for %s on %s", key, self.graph_pool.device)
        return graph, answer
