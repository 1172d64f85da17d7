"""One rank of a miniature stage 2, started by torch's own launcher: python -m torch.distributed.run ... rank_process.py RUN CLIPS STUDENT TEACHER SHARD"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parents[3] / "python")]

from tests.train.distill.test_stage2 import PLAN  # noqa: E402
from tests.train.pretrain.test_windows import SMALL  # noqa: E402

from everface.train.distill.stage2 import train_stage2  # noqa: E402

if __name__ == "__main__":
    torch.set_num_threads(1)
    run, clips, student, teacher = (Path(a) for a in sys.argv[1:5])
    iterations, shard = int(sys.argv[5]), sys.argv[6] == "shard"
    train_stage2(run, clips, student, teacher, replace(PLAN, iterations=iterations, decay_from=1.0, shard=shard), SMALL)
