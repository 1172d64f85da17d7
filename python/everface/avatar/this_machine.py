"""The deployment that suits this machine."""

from __future__ import annotations

from typing import Any

import torch

from everface.core import env
from everface.core.config import Deployment
from everface.core.machine import live_threads
from everface.core.memory import keep_freed_memory
from everface.kernels.video.causal_conv3d import cpu_dtypes


def best_deployment(live: bool = False, **given: Any) -> Deployment:
    """CUDA in bfloat16 where torch finds a CUDA device; else the CPU in float32, or, if `live`, in bfloat16 where the CPU multiplies it in hardware, on
    one thread where more are not faster (measured, for some 0.1 s).

    given: fields of `Deployment` that are decided already, such as dtype="fp8"; threads=None is as good as not given. On a CPU the process keeps freed memory from then on
    (`keep_freed_memory`), so call this before it has threads. Raises BadInput for values that cannot be used.
    """
    given.setdefault("device", "cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = given["device"] == "cpu"
    given.setdefault("dtype", "bfloat16" if not on_cpu or (live and torch.bfloat16 in cpu_dtypes()) else "float32")
    given["threads"] = given.get("threads") or env.threads()
    if on_cpu:
        keep_freed_memory()
        if live and given["threads"] is None:
            given["threads"] = live_threads(given["dtype"])
    return Deployment(**given)
