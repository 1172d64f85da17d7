"""One rank of a miniature stage 2, for torch's launcher: python -m torch.distributed.run ... rank_process.py RUN CLIPS STUDENT TEACHER
ITERATIONS copy|shard"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parents[3] / "python")]

from tests.train.miniature import SMALL_DIT, STAGE2  # noqa: E402  after the environment is set

from everface.train.distill.stage2 import train_stage2  # noqa: E402  after the environment is set

if __name__ == "__main__":
    torch.set_num_threads(1)
    run, clips, student, teacher = (Path(a) for a in sys.argv[1:5])
    iterations, shard = int(sys.argv[5]), sys.argv[6] == "shard"
    train_stage2(run, clips, student, teacher, replace(STAGE2, iterations=iterations, decay_from=1.0, shard=shard), SMALL_DIT)
