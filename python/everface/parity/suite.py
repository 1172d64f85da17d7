"""Every golden case of a folder against this build: `everface parity`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from everface.core.errors import BadInput
from everface.parity import components, dit, frontends, live_talk, stream
from everface.parity.golden import Golden, Missing, find_cases, select
from everface.parity.report import Check, Line, count

Case = Callable[[Golden, Check], None]

DIT_CASES: dict[str, Case] = {
    "dit_block": dit.one_block,
    "dit_full": dit.whole_model,
    "dit_stream_seq": stream.sequential,
    "dit_stream_seq_online": stream.sequential,
    "dit_stream_seq_rel30": stream.sequential,
    "dit_stream_seq_fp16rope": stream.rounded_rotations,
    "dit_stream_tpp": stream.pipelined,
    "dit_stream_kv": stream.caches,
} | live_talk.LIVE_TALK_TRANSFORMER
CASES: dict[str, Case] = DIT_CASES | {
    "rope": components.rope,
    "framepack": components.framepack,
    "audio_encoder_injector": components.audio_encoder_injector,
    "sampler": components.sampler,
    "lora_merge": components.lora_merge,
    "fp8_linear": components.fp8_linear,
    "audio_bucket": frontends.audio_bucket,
    "wav2vec2": frontends.wav2vec2,
    "t5": frontends.t5,
    "vae": frontends.vae,
    "preprocess": frontends.preprocess,
} | live_talk.LIVE_TALK
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def run(folder: Path, case: str | None = None, dtype: str = "float32", as_json: bool = False) -> int:
    """Compare, print a line a tensor and a summary, or one JSON object. 0 when something was compared and nothing misses, else 1.

    `case` names a case, a file, or the beginning of several. bfloat16 runs the transformer's cases only and holds the relative RMS error
    to its own tolerance. Raises BadInput on a folder without golden data, a case it lacks, another dtype.
    """
    if dtype not in DTYPES:
        raise BadInput(f"parity does not compute in {dtype!r}: choose float32 or bfloat16")
    files = select(find_cases(folder, list(CASES)), case)
    if dtype != "float32":
        files = [file for file in files if file.case in DIT_CASES]
        if not files:
            raise BadInput(f"{dtype} is compared for the transformer only: choose one of {', '.join(DIT_CASES)}")
    lines: list[Line] = []
    for file in files:
        found = run_case(file, DTYPES[dtype])
        lines += found
        if not as_json:
            print("\n".join(map(str, found)), flush=True)
    total = count(lines)
    if as_json:
        print(json.dumps({"folder": str(folder), "dtype": dtype, **total, "lines": [line.to_dict() for line in lines]}))
    else:
        compared = total["ok"] + total["MISS"]
        print(
            f"{len(files)} case{'s' * (len(files) != 1)}, {compared} tensors compared in {dtype}: {total['MISS']} miss"
            f"; {total['absent']} absent, {total['unused']} unused"
        )
    return 1 if total["MISS"] or not total["ok"] else 0


@torch.inference_mode()
def run_case(file: Golden, dtype: torch.dtype = torch.float32) -> list[Line]:
    """All lines of one file."""
    check = Check(file, dtype)
    try:
        CASES[file.case](file, check)
    except Missing as missing:
        check.absent("(the rest)", f"needs {missing}, which is not in this folder")
    return check.close()
