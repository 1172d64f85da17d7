"""The log of a run and its curves."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from everface.train.engine.chart import draw_panels
from everface.train.engine.run_log import RunLog, draw_log


def test_a_row_holds_means_of_what_was_added_and_what_was_set(tmp_path: Path) -> None:
    with RunLog(tmp_path) as log:
        log.add(loss=1.0)
        log.set(norm=5.0)
        log.add(loss=2.0)
        log.set(norm=7.0)
        log.write({"step": 2})
        log.write({"step": 3})
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows == [{"step": 2, "norm": 7.0, "loss": 1.5}, {"step": 3}]


def test_a_log_becomes_an_image(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": i, "fake": 1 / (i + 1), "norm": i} | ({"dmd": 0.5} if i % 2 else {})) + "\n" for i in range(9)))
    assert draw_log(log) == tmp_path / "log.png" and Image.open(tmp_path / "log.png").height > 3 * 100  # one panel per name
    log.write_text("")
    assert draw_log(log) is None


def test_a_chart_draws_what_it_is_given(tmp_path: Path) -> None:
    """The curve goes up where the numbers do; what is not finite is left out."""
    path = draw_panels(tmp_path / "a.png", {"up": [(0, 0.0), (5, float("nan")), (10, 1.0)], "none": []}, "step", {"up": (0.4, 0.6)})
    image = Image.open(path).convert("RGB")
    blue = [(x, y) for x in range(image.width) for y in range(image.height) if image.getpixel((x, y)) == (30, 90, 170)]
    (left, low), (right, high) = min(blue), max(blue)
    assert right - left > 600 and low - high > 60
