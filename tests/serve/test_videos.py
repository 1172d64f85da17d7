"""`/v1/videos`: a render from its request to its file, what is refused, and the bounds of the queue and of what is kept."""

from __future__ import annotations

import io
import math
import threading
import time
from pathlib import Path
from typing import Any

import av
import httpx
import numpy as np
import pytest
from PIL import Image
from tests.serve.hosting import Host, ToyBackend, hosted

from everface.serve.metrics import Metrics
from everface.serve.settings import Limits
from everface.serve.videos.jobs import Aborted, Jobs, QueueFull, VideoJob

GONE = "video_" + "0" * 24


def wav(seconds: float, rate_hz: int = 16_000, channels: int = 1) -> bytes:
    """A tone, as int16."""
    import wave

    tone = (8000 * np.sin(np.arange(int(seconds * rate_hz)) * 0.1)).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((channels, 2, rate_hz, 0, "NONE", ""))
        out.writeframes(np.repeat(tone[:, None], channels, 1).tobytes())
    return file.getvalue()


def png(side: int = 96) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((side, side), 50).convert("RGB").save(file, "PNG")
    return file.getvalue()


def create(host: Host, audio: Any = None, image: Any = None, **fields: Any) -> httpx.Response:
    files = {"audio": ("a.wav", audio if audio is not None else wav(1.0))}
    if image is not None:
        files["image"] = ("i.png", image)
    return host.http.post("/v1/videos", files=files, data=fields)


def finished(host: Host, name: str) -> dict[str, Any]:
    host.wait(lambda: host.http.get(f"/v1/videos/{name}").json()["status"] in ("completed", "failed"), 60)
    return host.http.get(f"/v1/videos/{name}").json()


@pytest.mark.parametrize(("rate_hz", "channels"), [(8_000, 1), (16_000, 1), (22_050, 1), (44_100, 2), (48_000, 1)])
def test_a_video_shows_all_of_its_audio(small_host: Host, tmp_path: Path, rate_hz: int, channels: int) -> None:
    response = create(small_host, wav(1.3, rate_hz, channels), png(), seed=3, prompt="")
    assert response.status_code == 200 and response.json()["status"] in ("queued", "in_progress")
    video = finished(small_host, name := response.json()["id"])
    assert video["status"] == "completed" and video["progress"] == 100 and video["seed"] == 3 and not video["error"]
    content = small_host.http.get(f"/v1/videos/{name}/content")
    assert content.headers["content-type"] == "video/mp4"
    (tmp_path / "v.mp4").write_bytes(content.content)
    with av.open(str(tmp_path / "v.mp4")) as file:
        frames = sum(1 for _ in file.decode(video=0))
    with av.open(str(tmp_path / "v.mp4")) as file:
        sound = np.concatenate([f.to_ndarray()[0] for f in file.decode(audio=0)])
    assert frames == math.ceil(1.3 * 25) and len(sound) >= 1.3 * 44_100
    assert np.sqrt(np.mean(sound[4000:40_000] ** 2)) == pytest.approx(8000 / 32768 / math.sqrt(2), rel=0.1)
    assert next(v["id"] for v in small_host.http.get("/v1/videos").json()["data"]) == name
    assert small_host.http.delete(f"/v1/videos/{name}").json()["deleted"]
    assert small_host.http.get(f"/v1/videos/{name}").status_code == 404


def test_the_same_seed_gives_the_same_video_and_another_does_not(small_host: Host) -> None:
    contents = []
    for seed in (1, 1, 2):
        name = create(small_host, wav(0.5), png(), seed=seed).json()["id"] if seed else ""
        finished(small_host, name)
        contents.append(small_host.http.get(f"/v1/videos/{name}/content").content)
    assert len(contents[0]) > 1000 and len(set(contents)) in (2, 3)


@pytest.mark.parametrize(
    ("files", "fields", "status", "sentence"),
    [
        ({}, {}, 422, "audio"),
        ({"audio": b""}, {}, 400, "empty"),
        ({"audio": b"no audio at all"}, {}, 400, "not a readable audio"),
        ({"audio": "wav", "image": b"no image"}, {}, 400, "not a JPEG"),
        ({"audio": "wav", "image": b""}, {}, 400, "empty"),
        ({"audio": "wav"}, {"seed": "many"}, 422, "seed"),
        ({"audio": "wav"}, {"seed": "-1"}, 422, "seed"),
        ({"audio": "wav"}, {"prompt": "x" * 3000}, 422, "prompt"),
    ],
)
def test_what_cannot_be_rendered_is_refused_at_once(
    host: Host, files: dict[str, Any], fields: dict[str, str], status: int, sentence: str
) -> None:
    parts = {name: (name, wav(0.5) if data == "wav" else data) for name, data in files.items()}
    response = host.http.post("/v1/videos", files=parts or {"other": ("o", b"x")}, data=fields)
    assert response.status_code == status
    error = response.json()["error"]
    assert sentence in error["message"] and "/tmp" not in error["message"] and error["code"]
    assert host.http.get("/v1/videos").json()["data"] == []


def test_too_large_is_refused_before_it_is_read_and_too_long_before_it_is_decoded() -> None:
    with hosted(limits=Limits(upload_bytes=200_000, audio_s=2.0, image_pixels=10_000)) as host:
        assert create(host, bytes(300_000)).status_code == 413
        response = create(host, wav(3.0))
        assert response.status_code == 400 and "longer than 2 s" in response.json()["error"]["message"]
        assert "megapixels" in create(host, image=png(128)).json()["error"]["message"]

        def endless() -> Any:
            yield b"--x\r\nContent-Disposition: form-data; name=audio; filename=a\r\n\r\n"
            while True:
                yield bytes(65_536)

        kind = {"content-type": "multipart/form-data; boundary=x"}
        assert host.http.post("/v1/videos", content=_first(endless(), 20), headers=kind).status_code == 413


def _first(pieces: Any, count: int) -> Any:
    return (piece for piece, _ in zip(pieces, range(count)))


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
def test_another_content_type_is_refused(host: Host, kind: str) -> None:
    response = host.http.post("/v1/videos", content=b"{}", headers={"content-type": kind})
    assert response.status_code == 415 and "multipart/form-data" in response.json()["error"]["message"]


@pytest.mark.parametrize("path", [f"/v1/videos/{GONE}", f"/v1/videos/{GONE}/content"])
def test_an_unknown_video_is_404_and_a_wrong_id_422(host: Host, path: str) -> None:
    assert host.http.get(path).status_code == 404
    assert host.http.get(path.replace(GONE, "..%2F..%2Fetc%2Fpasswd")).status_code in (404, 422)
    assert host.http.get(path.replace(GONE, "1")).status_code == 422


def test_a_video_is_not_there_before_it_is_made_and_delete_aborts_it(small_host: Host) -> None:
    name = create(small_host, wav(120.0)).json()["id"]
    second = create(small_host, wav(120.0)).json()["id"]
    response = small_host.http.get(f"/v1/videos/{name}/content")
    assert response.status_code == 409 and "not complete" in response.json()["error"]["message"]
    small_host.wait(lambda: small_host.http.get(f"/v1/videos/{name}").json()["progress"] > 0, 60)
    for video in (second, name):
        assert small_host.http.delete(f"/v1/videos/{video}").status_code == 200
        assert small_host.http.delete(f"/v1/videos/{video}").status_code == 404
    small_host.wait(lambda: not small_host.service.busy, 10)  # far less than 240 s of video take


def test_a_full_queue_is_429_with_a_sentence() -> None:
    with hosted(limits=Limits(jobs=1)) as host:
        gate, begun = threading.Event(), threading.Event()
        assert host.service.jobs is not None

        def render(job: VideoJob) -> None:
            begun.set()
            gate.wait(60)

        host.service.jobs._render = render
        codes = []
        for _ in range(4):
            codes.append(create(host).status_code)
            assert begun.wait(60)
            time.sleep(0.7)  # requests have a limit per second
        gate.set()
        assert codes == [200, 200, 429, 429]
        response = create(host)
        assert response.status_code == 200 or "wait already" in response.json()["error"]["message"]


def test_a_failed_render_says_why(host: Host) -> None:
    assert isinstance(host.server.backend, ToyBackend)
    assert host.service.jobs is not None
    render = host.service.jobs._render

    def fail(job: VideoJob) -> None:
        raise ZeroDivisionError

    host.service.jobs._render = fail
    name = create(host).json()["id"]
    video = finished(host, name)
    host.service.jobs._render = render
    assert video["status"] == "failed" and "bug" in video["error"]
    assert host.http.get(f"/v1/videos/{name}/content").status_code == 409
    host.http.delete(f"/v1/videos/{name}")


def settled(jobs: Jobs, count: int) -> list[VideoJob]:
    """The jobs that are left once they are so many, or after a minute; a moment later there may not be fewer."""
    end_s = time.monotonic() + 60
    while len(jobs.all()) != count and time.monotonic() < end_s:
        time.sleep(0.05)
    time.sleep(1.2)
    left = jobs.all()
    assert len(left) == count
    return left


def test_results_are_kept_within_size_and_age(tmp_path: Path) -> None:
    limits = Limits(results_bytes=250, results_s=60.0)

    def render(job: VideoJob) -> None:
        if job.prompt == "abort":
            raise Aborted
        job.video.write_bytes(bytes(100))

    jobs = Jobs(render, limits, Metrics())
    try:
        for _ in range(4):
            with jobs.place() as (name, folder):
                (folder / "image").touch()
                jobs.submit(VideoJob(name, folder, folder / "image", "", None))
            end_s = time.monotonic() + 60
            while jobs.busy and time.monotonic() < end_s:
                time.sleep(0.01)
        left = settled(jobs, 2)
        assert len(left) == 2 and all([file.name for file in job.folder.iterdir()] == ["video.mp4"] for job in left)
        left[0].kept_since_s -= 100
        left[1].ended_s = 0.0  # the wall clock has jumped: that changes nothing
        assert settled(jobs, 1) == left[1:] and not left[0].folder.exists()
    finally:
        jobs.close()
    assert not left[1].folder.exists()


def test_uploads_that_are_being_taken_count_as_waiting() -> None:
    jobs = Jobs(lambda job: None, Limits(jobs=2), Metrics())
    try:
        with jobs.place() as (_, one), jobs.place() as (_, two):
            assert one != two
            with pytest.raises(QueueFull), jobs.place():
                pass
        with pytest.raises(ZeroDivisionError), jobs.place() as (_, folder):
            raise ZeroDivisionError
        assert not folder.exists()
        with jobs.place(), jobs.place():
            pass
    finally:
        jobs.close()


def test_a_server_that_is_not_ready_renders_nothing() -> None:
    backend = ToyBackend()
    with hosted(backend) as host:
        backend.state = "loading"
        response = create(host)
        assert response.status_code == 503 and "try again" in response.json()["error"]["message"]
        backend.state = "ready"


