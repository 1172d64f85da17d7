"""Runs from the command line to the report, and two reports beside each other."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
import soxr
from PIL import Image
from tests.genbench.conftest import Draw
from tests.genbench.test_windows import write_video

from everface import cli
from everface.core.errors import BadInput
from everface.genbench.clips.live_latency import LatencyRecord
from everface.genbench.clips.runner import ClipRecord
from everface.genbench.comparison import compare_reports
from everface.genbench.manifest import BenchmarkSet, write_manifest
from everface.genbench.measures import MEASURES, gain
from everface.genbench.metrics.dino import DinoIdentity
from everface.genbench.metrics.motion import Motion
from everface.genbench.report import GenBenchReport, Statistic, read_report, summarize, to_markdown, window_table
from everface.genbench.scoring import ClipScore, MetricWeights, WindowScore
from everface.genbench.windows import soundtrack
from everface.media.video import read_frames


@pytest.fixture
def videos(tmp_path: Path, draw: Draw) -> tuple[Path, Path]:
    """Two systems' videos of the first character: in sync, and with audio that is 5 frames late."""
    folders = tmp_path / "good", tmp_path / "late"
    for folder, late in zip(folders, (0, 5)):
        folder.mkdir()
        write_video(folder / "s-0.mp4", draw, late=late)
    return folders


def run(system: str, benchmark: BenchmarkSet, out: Path, *more: str) -> int:
    return cli.main(["genbench", "run", "--set", str(benchmark.folder), "--system", system, "-o", str(out), *more])


def test_a_run_of_videos_is_reported_and_ranked(
    videos: tuple[Path, Path], small_set: BenchmarkSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, late = tmp_path / "a", tmp_path / "b"
    assert run(f"dir:{videos[0]}", small_set, good) == run(f"dir:{videos[1]}", small_set, late) == 0
    text = capsys.readouterr().out
    assert "1 of 2 clips" in text and "`s-1`: there is no s-1.mp4" in text and "| Live Avatar | 3.44 | 4.51 | 7.03 |" in text
    assert "| Sync-C · Sync-D · SyncNet offset, frames | not available: needs SyncNet's weights" in text and "| **this run** | n/a | n/a |" in text
    first, second = read_report(good), read_report(late)
    assert (first.measures["lip_lag"].mean, second.measures["lip_lag"].mean) == (0, -5)
    assert (first.measures["av_offset"].mean, second.measures["av_offset"].mean) == (0, -5)
    assert first.measures["lip_corr"].mean > 0.95
    assert not {"sync_c", "dino_s", "iqa", "fps"} & first.measures.keys() and {"sync_c", "dino_s", "iqa"} <= first.missing.keys()
    assert cli.main(["genbench", "diff", str(good), str(late)]) == 0
    table = capsys.readouterr().out
    assert "| A/V offset, frames | 0 | -5 | -5 | worse |" in table and "| failures | 1 of 2 | 1 of 2 |" in table
    assert "better" in compare_reports(second, first)


def reencode(source: Path, path: Path, late: int = 0) -> None:
    """As another system's file: MPEG-4 at 30 frames per second and few bits, stereo AAC of 44.1 kHz, the audio so many frames later."""
    frames, pcm_S = list(read_frames(source)), np.concatenate(list(soundtrack(source, source)))
    pcm_S = np.pad(pcm_S, (late * 640, 0))[: len(pcm_S)]
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("mpeg4", rate=30), container.add_stream("aac", rate=44_100, layout="stereo")
        assert isinstance(video, av.VideoStream) and isinstance(audio, av.AudioStream)
        video.height, video.width, video.pix_fmt, video.bit_rate = *frames[0].shape[:2], "yuv420p", 400_000
        for n in range(len(frames) * 30 // 25):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frames[n * 25 // 30], format="rgb24")))
        sound = av.AudioFrame.from_ndarray(np.stack([soxr.resample(pcm_S, 16_000, 44_100)] * 2).astype(np.float32), format="fltp", layout="stereo")
        sound.sample_rate = 44_100
        container.mux(audio.encode(sound))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def test_reencoded_videos_are_ranked(small_set: BenchmarkSet, tmp_path: Path, draw: Draw) -> None:
    """A system's own files, the same with few bits and at another rate, and these out of sync: in this order, for these reasons."""
    own, again, late = (tmp_path / name for name in ("own", "again", "late"))
    own.mkdir()
    write_video(own / "s-0.mp4", draw)
    reencode(own / "s-0.mp4", again / "s-0.mp4")
    reencode(own / "s-0.mp4", late / "s-0.mp4", late=4)
    measures = {}
    for folder in (own, again, late):
        assert run(f"dir:{folder}", small_set, tmp_path / f"out-{folder.name}", "--limit", "1") == 0
        measures[folder.name] = {name: s.mean for name, s in read_report(tmp_path / f"out-{folder.name}").measures.items()}
    for name in ("av_offset", "lip_lag"):
        assert (measures["own"][name], measures["again"][name], measures["late"][name]) == (0, 0, -4)
        assert gain(name, measures["again"][name], measures["late"][name]) < 0
    assert measures["own"]["lip_corr"] > measures["again"]["lip_corr"] > 0.9
    assert measures["own"]["av_confidence"] > measures["again"]["av_confidence"] > 0
    table = compare_reports(read_report(tmp_path / "out-again"), read_report(tmp_path / "out-late"))
    assert "| A/V offset, frames | 0 | -4 | -4 | worse |" in table and "| lip lag, frames (truth) | 0 | -4 | -4 | worse |" in table


def test_the_page_plays_the_clips(videos: tuple[Path, Path], small_set: BenchmarkSet, tmp_path: Path) -> None:
    out = tmp_path / "a"
    run(f"dir:{videos[0]}", small_set, out)
    page = (out / "report.html").read_text()
    assert 'src="../good/s-0.mp4#t=0.04"' in page and "not available" in page and "there is no s-1.mp4" in page
    assert Image.open(out / "sheet.png").size == (128 * 9, 128)
    assert json.loads((out / "report.json").read_text())["environment"]["torch"]


def test_scores_are_reused_and_made_again_for_a_new_file(videos: tuple[Path, Path], small_set: BenchmarkSet, tmp_path: Path) -> None:
    out = tmp_path / "a"
    run(f"dir:{videos[0]}", small_set, out)
    path = out / "scores" / "s-0.json"
    edited = json.loads(path.read_text())
    edited["windows"][0]["measures"]["motion"] = 99.0
    path.write_text(json.dumps(edited))
    assert cli.main(["genbench", "report", str(out)]) == 0
    assert read_report(out).measures["motion"].mean == 99
    shutil.copyfile(videos[1] / "s-0.mp4", videos[0] / "s-0.mp4")
    assert cli.main(["genbench", "report", str(out)]) == 0
    assert read_report(out).measures["motion"].mean < 99 and read_report(out).measures["av_offset"].mean == -5


def test_a_face_that_is_added_later_is_measured(videos: tuple[Path, Path], small_set: BenchmarkSet, tmp_path: Path) -> None:
    """The clips stay, as they do not depend on it."""
    faces = [sample.face for sample in small_set.samples]
    for sample in small_set.samples:
        sample.face = None
    write_manifest(small_set.folder, small_set.samples)
    assert run(f"dir:{videos[0]}", small_set, tmp_path / "a", "--limit", "1") == 0
    assert "does not say where the face is" in read_report(tmp_path / "a").missing["av_offset"]
    for sample, face in zip(small_set.samples, faces):
        sample.face = face
    write_manifest(small_set.folder, small_set.samples)
    assert run(f"dir:{videos[0]}", small_set, tmp_path / "a", "--limit", "1") == 0
    assert read_report(tmp_path / "a").measures["av_offset"].mean == 0


def test_weights_that_become_complete_are_loaded(
    videos: tuple[Path, Path], small_set: BenchmarkSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what was lacking is no file of theirs."""
    out, dino = tmp_path / "a", tmp_path / "dino"
    dino.mkdir()
    run(f"dir:{videos[0]}", small_set, out, "--limit", "1", "--dino", str(dino))
    assert "has no config.json" in read_report(out).missing["dino_s"]
    monkeypatch.setattr(DinoIdentity, "load", lambda folder, device: Motion())
    assert cli.main(["genbench", "report", str(out), "--dino", str(dino)]) == 0
    assert "dino_s" not in read_report(out).missing
    before = MetricWeights(dino=dino).key()
    (dino / "config.json").write_text("{}")
    assert MetricWeights(dino=dino).key() != before


def test_damaged_videos_end_nothing(videos: tuple[Path, Path], small_set: BenchmarkSet, tmp_path: Path) -> None:
    (videos[0] / "s-1.mp4").write_bytes(b"no video")
    assert run(f"dir:{videos[0]}", small_set, tmp_path / "a") == 0
    assert "s-1.mp4" in read_report(tmp_path / "a").failures["s-1"] and Image.open(tmp_path / "a" / "sheet.png").size == (128 * 9, 128)
    assert "no video" not in (tmp_path / "a" / "report.html").read_text() and 'class="failed"' in (tmp_path / "a" / "report.html").read_text()
    with av.open(str(tmp_path / "whole.mp4"), "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        container.mux(stream.encode(None))
    whole = (tmp_path / "whole.mp4").read_bytes()
    (videos[0] / "s-1.mp4").write_bytes(whole[: whole.index(b"moof") - 4])  # a header alone
    assert cli.main(["genbench", "report", str(tmp_path / "a")]) == 0
    assert "shows no frame" in read_report(tmp_path / "a").failures["s-1"]


def test_a_set_that_grows_is_the_same_run(videos: tuple[Path, Path], small_set: BenchmarkSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a manifest of any name, which the report finds again."""
    manifest, lines = small_set.folder / "mine.jsonl", (small_set.folder / "manifest.jsonl").read_text().splitlines(True)
    (small_set.folder / "manifest.jsonl").unlink()
    manifest.write_text(lines[0])
    given = ["genbench", "run", "--set", str(manifest), "--system", f"dir:{videos[0]}", "-o", str(tmp_path / "a"), "--limit", "1"]
    assert cli.main(given) == 0
    manifest.write_text("".join(lines))
    assert cli.main(given) == 0 and cli.main(["genbench", "report", str(tmp_path / "a")]) == 0
    shutil.copyfile(small_set.folder / "1.png", small_set.folder / "0.png")
    assert cli.main(given) == 2
    assert "holds a run over other samples" in capsys.readouterr().err


def test_a_folder_holds_one_run(
    videos: tuple[Path, Path], small_set: BenchmarkSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(f"dir:{videos[0]}", small_set, tmp_path / "a", "--limit", "1")
    assert run(f"dir:{videos[0]}", small_set, tmp_path / "a") == 0  # more samples of the same
    assert run(f"dir:{videos[1]}", small_set, tmp_path / "a") == 2
    assert "holds a run with another system" in capsys.readouterr().err


def test_a_run_without_any_clip_fails(small_set: BenchmarkSet, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run(f"dir:{tmp_path / 'empty'}", small_set, tmp_path / "a") == 1


def test_wrong_reports_and_runs_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadInput, match="there is no report"):
        read_report(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(BadInput, match="is no report of genbench"):
        read_report(tmp_path)
    assert cli.main(["genbench", "report", str(tmp_path)]) == 2
    assert cli.main(["genbench", "build"]) == 2
    assert cli.main(["genbench", "run", "--set", str(tmp_path / "none"), "-o", str(tmp_path / "x")]) == 2
    assert all(line.startswith("everface: ") for line in capsys.readouterr().err.splitlines())


def test_what_is_better() -> None:
    assert gain("sync_d", 9, 8) > 0 > gain("sync_c", 9, 8)
    assert gain("lip_lag", -2, 0) > 0 and gain("lip_amplitude", 0.9, 1.2) < 0 and gain("motion", 1, 2) == 0
    assert {"ASE", "IQA", "Sync-C", "Sync-D", "Dino-S", "FPS"} <= {measure.paper for measure in MEASURES.values()}


def test_windows_of_a_stream_have_quality_and_speed_side_by_side(small_set: BenchmarkSet, tmp_path: Path) -> None:
    record = ClipRecord("s-0", speed={"fps": 30.0, "memory_mb_per_1000s": 0.1}, windows={"0": {"fps": 31.0}, "100": {"fps": 29.0, "rss_mb": 700.0}})
    score = ClipScore("s-0", "", [WindowScore(begin, {"lip_corr": 0.9 + begin / 10_000}, {}) for begin in (0.0, 100.0)])
    report = summarize("everface", "long", {}, [record], [score], LatencyRecord({"speech_ms_p50": 400.0}))
    assert [report.measures[name].mean for name in ("lip_corr", "fps", "speech_ms_p50")] == [0.9, 30, 400]
    assert window_table(report) == [
        ["measure", "0-10 s", "100-110 s"], ["lip correlation (truth)", "0.900", "0.910"], ["FPS", "31.0", "29.0"], ["memory, MB", "", "700"],
    ]  # fmt: skip
    text = to_markdown(report)
    assert "| FPS | 31.0 | 29.0 |" in text and "| silence to speech p50, ms | 400 |" in text and "- FPS: frames / seconds" in text
    failed = summarize("everface", "long", {}, [record], [score], LatencyRecord(error="no speech"))
    assert "| silence to speech p50, ms · silence to speech p95, ms | not available: no speech |" in to_markdown(failed)


def test_offsets_that_cancel_are_worse_than_none() -> None:
    def of(*offsets: float) -> GenBenchReport:
        scores = [ClipScore(str(i), "", [WindowScore(0.0, {"av_offset": offset}, {})]) for i, offset in enumerate(offsets)]
        return summarize("dir:a", "short", {}, [ClipRecord(str(i), "a.mp4") for i in range(len(offsets))], scores)

    assert of(5, -5).measures["av_offset"] == Statistic(0, -5, 5, 2, 5)
    assert "| A/V offset, frames | 0 | 0 | +0 | worse |" in compare_reports(of(0, 0), of(5, -5))
    assert "| A/V offset, frames | 0 | 0 | +0 |  |" in compare_reports(of(0, 0), of(0, 0))


def test_every_measure_says_what_it_is() -> None:
    assert [name for name, measure in MEASURES.items() if not measure.about] == []
