"""The page in a real browser, with the bundled model behind it: it plays video and audio, moves its mouth to speech, and can be interrupted."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from everface.serve.backend import IMAGES

SPEECH = IMAGES["ada"].parent / "speech.wav"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
    f"--use-file-for-fake-audio-capture={SPEECH}",
]  # fmt: skip
# Looks at the mouth and listens, 80 ms at a time: the mean change of the mouth between two looks, and the loudest RMS.
PROBE = """async (count) => {
  const video = document.getElementById("video"), canvas = document.createElement("canvas");
  canvas.width = canvas.height = 128;
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  if (window.analysed !== video.src) {  // another session, another stream
    window.analysed = video.src;
    const context = new AudioContext();
    window.analyser = context.createAnalyser();
    context.createMediaStreamSource(video.captureStream()).connect(window.analyser);
  }
  let before = null, motion = 0, loudest = 0;
  const samples = new Float32Array(2048);
  for (let i = 0; i <= count; i++) {
    pen.drawImage(video, 0, 0, 128, 128);
    const mouth = pen.getImageData(44, 84, 40, 24).data;
    if (before) motion += mouth.reduce((sum, value, at) => sum + Math.abs(value - before[at]), 0) / mouth.length / count;
    before = mouth;
    window.analyser.getFloatTimeDomainData(samples);
    loudest = Math.max(loudest, Math.sqrt(samples.reduce((sum, x) => sum + x * x, 0) / samples.length));
    await new Promise((done) => setTimeout(done, 80));
  }
  return { motion, loudest, frames: video.getVideoPlaybackQuality().totalVideoFrames, at: video.currentTime };
}"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no chromium is found"), pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """`everface serve` as a user starts it; SIGTERM ends it with 0."""
    command = [sys.executable, "-m", "everface", "serve", "--port", "0", "--sampler", "skip-null"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "2"})
    assert server.stdout
    try:
        line = server.stdout.readline()
        yield re.findall(r"http://\S+", line)[0]
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, headless=True, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1100, "height": 680})
        page.problems = []
        page.on("console", lambda message: page.problems.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.goto(address)
        until(page, "document.body.dataset.state === 'live' && document.getElementById('video').currentTime > 1.5")
        yield page
        browser.close()


def until(page: Any, condition: str, timeout_s: float = 90.0) -> None:
    """Not wait_for_function: the page's policy forbids eval."""
    end_s = time.monotonic() + timeout_s
    while not page.evaluate(condition):
        assert time.monotonic() < end_s, (condition, page.inner_text("#problem"), page.problems)
        time.sleep(0.1)


def probe(page: Any, seconds: float = 2.0) -> dict[str, float]:
    return page.evaluate(PROBE, int(seconds / 0.08))


def probe_until(page: Any, fits: Callable[[dict[str, float]], bool], seconds: float = 2.0, timeout_s: float = 60.0) -> dict[str, float]:
    """Look and listen until it is as it should be: how soon that is depends on the machine."""
    end_s = time.monotonic() + timeout_s
    while not fits(seen := probe(page, seconds)):
        assert time.monotonic() < end_s, (seen, page.inner_text("#problem"), page.problems)
    return seen


def test_it_plays_speaks_is_interrupted_and_listens(page: Any) -> None:
    first = probe(page)
    probe_until(page, lambda seen: seen["frames"] > first["frames"] + 20 and seen["at"] > first["at"] + 1)  # alive before anybody speaks
    idle = probe(page)
    assert idle["loudest"] < 0.001

    page.set_input_files("#file", SPEECH)
    until(page, "document.getElementById('latency').textContent.endsWith('ms')")
    speaking = probe_until(page, lambda seen: seen["loudest"] > 0.02 and seen["motion"] > 3 * idle["motion"], 4.0)
    if image := os.environ.get("EVERFACE_PAGE_IMAGE"):  # for the documentation
        page.screenshot(path=image)

    page.click("#interrupt")
    until(page, "document.getElementById('turnaround').textContent.endsWith('ms')")
    settled = probe_until(page, lambda seen: seen["loudest"] < 0.001 and seen["motion"] < speaking["motion"] / 3)

    page.click("#microphone")
    until(page, "document.getElementById('microphone').textContent === 'Stop'")
    assert page.is_checked("#mute")  # it would hear itself
    listening = probe_until(page, lambda seen: seen["motion"] > 2 * settled["motion"], 4.0)
    page.click("#microphone")
    page.click("#interrupt")
    probe_until(page, lambda seen: seen["motion"] < listening["motion"] / 2)
    assert page.problems == [] and page.is_hidden("#problem")


def test_another_image_and_what_is_none(page: Any, tmp_path: Path) -> None:
    def look() -> list[int]:
        return page.evaluate("""() => { const c = document.createElement("canvas"); c.width = c.height = 8; const p = c.getContext("2d");
            p.drawImage(document.getElementById("video"), 0, 0, 8, 8); return [...p.getImageData(0, 0, 8, 8).data]; }""")

    before = look()
    page.click("#images button:nth-child(2)")
    until(page, "document.querySelector('#images button:nth-child(2)').getAttribute('aria-pressed') === 'true'")
    end_s = time.monotonic() + 60
    while sum(abs(a - b) for a, b in zip(before, look())) < 2000:
        assert time.monotonic() < end_s
        time.sleep(0.2)
    (tmp_path / "no.png").write_text("no image")
    page.set_input_files("#upload", tmp_path / "no.png")
    until(page, "!document.getElementById('problem').hidden && !document.getElementById('again').hidden")
    assert "not a JPEG" in page.inner_text("#problem")
    page.set_input_files("#upload", IMAGES["mia"])
    until(page, "document.body.dataset.state === 'live'")
    assert page.problems == []


def test_typed_text_is_spoken_where_espeak_is(page: Any) -> None:
    if shutil.which("espeak-ng") is None:
        assert page.is_hidden("#say")
        return
    page.uncheck("#mute")
    page.fill("#text", "This is a sentence that was typed, and it is long enough to be seen and heard.")
    page.click("#say button")
    probe_until(page, lambda seen: seen["loudest"] > 0.02)
    assert page.problems == []
