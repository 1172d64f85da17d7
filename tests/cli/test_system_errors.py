"""Names, folders and settings that the system refuses: one line, exit 2, and nothing is left behind."""

from __future__ import annotations

import argparse
import errno
import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.processes import ROOT, refused, run

from everface.cli import main
from everface.cli.system_errors import describe
from everface.media.video import probe_video

LONG = "n" * 300  # file systems allow 255 bytes


def one_line(capsys: pytest.CaptureFixture[str], argv: list[str], *named: str) -> None:
    try:
        code = main(argv)
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and err.startswith("everface: ") and err.count("\n") == 1, (code, out, err)
    for name in named:
        assert name in err, err


@pytest.mark.parametrize(
    "words",
    [
        "render {long}.png {voice} -o {tmp}/x.mp4",
        "render {face} {long}.wav -o {tmp}/x.mp4",
        "render {face} {voice} -o {long}.mp4",
        "render {face} {voice} -o {tmp}/{long}/x.mp4",
        "render {face} {voice} -o {tmp}/x.mp4 --weights {long}",
        "render {face} {voice} -o {tmp}/x.mp4 --weights {model} --lora {long}.safetensors",
        "demo -o {long}",
        "convert {long}",
        "parity {long}",
        "pull --dir {long}",
        "train vae {long}",
        "train stage1 {long} --clips {tmp}",
        "train bundle {long} --vae {tmp} -o {tmp}",
    ],
)
def test_a_name_of_300_bytes(
    words: str, small_model: Path, face: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"face": face, "voice": voice, "tmp": tmp_path, "model": small_model, "long": LONG}
    one_line(capsys, [word.format(**places) for word in words.split()])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("render {face} {voice} -o {tmp}/x.mp4 --weights {file}", "not a folder"),
        ("render {face} {voice} -o {file}/x.mp4", "no folder"),
        ("render {tmp}/pipe {voice} -o {tmp}/x.mp4", "not a regular file"),
        ("render {file}/face.png {voice} -o {tmp}/x.mp4", "no image file"),
        ("render {tmp}/loop {voice} -o {tmp}/x.mp4", "symbolic links"),
        ("demo -o {file}", "cannot be made a folder"),
        ("demo -o {file}/out", "cannot be made a folder"),
        ("train vae {file}", "name a folder"),
        ("render {face} {voice} -o {tmp}/x.mp4 --threads 1000000000", "from 1 to 1024"),
        ("render {face} {voice} -o {tmp}/x.mp4 --threads " + "9" * 30, "from 1 to 1024"),
        ("bench --repeats " + "9" * 5000, "--repeats"),
    ],
)
def test_what_is_not_what_it_should_be(
    words: str, named: str, face: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    places = {"face": face, "voice": voice, "tmp": tmp_path, "file": tmp_path / "file"}
    one_line(capsys, [word.format(**places) for word in words.split()], named)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "loop", "pipe"]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("EVERFACE_LOG", "verbose", "simulate --paper"),
        ("EVERFACE_THREADS", "many", "render {face} {voice} -o {tmp}/x.mp4"),
        ("EVERFACE_CACHE", "~nobody-has-this-name", "doctor"),
        ("EVERFACE_CACHE", "{tmp}/file", "render {face} {voice} -o {tmp}/x.mp4 --weights {tmp}/model --lora {tmp}/lora.safetensors"),
    ],
)
def test_a_wrong_setting(
    name: str, value: str, words: str, small_model: Path, face: Path, voice: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from tests.weights.test_lora_refusals import write_lora

    (tmp_path / "file").write_text("a file")
    (tmp_path / "model").symlink_to(small_model)
    write_lora(small_model, tmp_path / "lora.safetensors")
    before, places = sorted(tmp_path.iterdir()), {"face": face, "voice": voice, "tmp": tmp_path}
    monkeypatch.setenv(name, value.format(**places))
    code = None
    try:
        code = main([word.format(**places) for word in words.split()])
    except SystemExit as end:
        code = end.code
    err = capsys.readouterr().err
    assert code == 2 and err.count("\n") == 1 and name in err, err
    assert sorted(tmp_path.iterdir()) == before


def test_empty_settings_are_defaults(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("EVERFACE_LOG", "EVERFACE_THREADS", "EVERFACE_CACHE"):
        monkeypatch.setenv(name, "")
    assert main(["simulate", "--paper"]) == 0 and capsys.readouterr().err == ""


def test_the_current_folder_was_deleted(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = f"cd {gone} && rmdir {gone} && {sys.executable} -m everface"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "python")}
    for words in ("simulate --paper", "render face.png speech.wav -o x.mp4"):
        done = subprocess.run(["bash", "-c", f"{command} {words}"], env=environment, capture_output=True, text=True)
        refused(done, "the current folder has been deleted")
        gone.mkdir()


def test_an_output_name_with_a_line_break(small_model: Path, face: Path, voice: Path, tmp_path: Path) -> None:
    words = f"render {face} {voice} --weights {small_model} -o $'a\\nb.mp4'"
    done = run(words, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(r"video        a\nb.mp4 (64x64"), done
    assert probe_video(tmp_path / "a\nb.mp4").frames == 53
    refused(run(words, cwd=tmp_path), "a b.mp4 is there already")


def test_only_errors_that_a_user_can_fix_become_a_sentence(tmp_path: Path) -> None:
    args = argparse.Namespace(out=tmp_path / "out", other=5)
    assert describe(OSError(errno.EACCES, "Permission denied", "/x"), args) == "/x cannot be used (Permission denied): check its permissions"
    assert describe(FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "out" / "a")), args)
    assert describe(FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere"), args) is None
    assert describe(FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere"), None) is None
    assert describe(BrokenPipeError(errno.EPIPE, "Broken pipe"), args) is None
    assert describe(OSError("without a number"), args) is None


AS_NOBODY = """
import contextlib, io, json, os, sys
import everface.avatar.render, everface.parity, everface.models.live_avatar.model, everface.weights.pull, rich.console
from everface.cli import main
user = int(sys.argv[1])
if user:
    os.setgroups([]); os.setgid(user); os.setuid(user)
said = []
for argv in json.loads(sys.argv[2]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(argv)
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    said.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(said))
"""


@pytest.fixture
def public(small_model: Path, face: Path, voice: Path) -> Iterator[Path]:
    """A folder that every user may read, with a model, an image and an audio file in it."""
    folder = Path(tempfile.mkdtemp(prefix="everface-test-"))
    shutil.copytree(small_model, folder / "model")
    shutil.copy(face, folder / "face.png")
    shutil.copy(voice, folder / "voice.wav")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    yield folder
    for path in folder.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder)


def test_folders_and_files_without_permission(public: Path) -> None:
    """As an ordinary user: root may enter every folder, so the commands run as nobody then."""
    from tests.weights.test_lora_refusals import write_lora

    write_lora(public / "model", public / "lora.safetensors")
    closed, unreadable, full = public / "closed", public / "unreadable", public / "read-only"
    for folder in (closed, unreadable, full):
        folder.mkdir()
    shutil.copytree(public / "model", closed / "model")
    for name in ("face.png", "voice.wav", "lora.safetensors"):
        shutil.copy(public / name, closed / name)
        shutil.copy(public / name, unreadable / name)
        (unreadable / name).chmod(0o000)
    shutil.copytree(public / "model", unreadable / "model")
    (unreadable / "model" / "config.json").chmod(0o000)
    shutil.copytree(public / "model", unreadable / "other")
    (unreadable / "other" / "vae.safetensors").chmod(0o000)
    (public / "lora.safetensors").chmod(0o644)
    closed.chmod(0o000)
    full.chmod(0o555)

    def render(image: Path = public / "face.png", audio: Path = public / "voice.wav", *more: str, out: Path = public / "x.mp4") -> list[str]:
        return ["render", str(image), str(audio), "-o", str(out), *(more or ("--weights", str(public / "model")))]

    cases = {
        "an image in it": render(closed / "face.png"),
        "an image": render(unreadable / "face.png"),
        "audio in it": render(audio=closed / "voice.wav"),
        "audio": render(audio=unreadable / "voice.wav"),
        "a video in it": render(out=closed / "x.mp4"),
        "a video in a read-only folder": render(out=full / "x.mp4"),
        "weights in it": render(public / "face.png", public / "voice.wav", "--weights", str(closed / "model")),
        "a configuration": render(public / "face.png", public / "voice.wav", "--weights", str(unreadable / "model")),
        "weights": render(public / "face.png", public / "voice.wav", "--weights", str(unreadable / "other")),
        "a LoRA in it": [*render(), "--lora", str(closed / "lora.safetensors")],
        "a LoRA": [*render(), "--lora", str(unreadable / "lora.safetensors")],
        "a demo in it": ["demo", "-o", str(closed / "demo")],
        "a conversion in it": ["convert", str(closed / "model")],
        "golden data in it": ["parity", str(closed / "golden")],
        "a download in it": ["pull", "--dir", str(closed / "weights")],
        "the cache": [*render(), "--lora", str(public / "lora.safetensors")],
    }
    user = pwd.getpwnam("nobody").pw_uid if os.getuid() == 0 else 0
    environment = os.environ | {"PYTHONPATH": str(ROOT / "python"), "EVERFACE_CACHE": str(full / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(user), json.dumps(list(cases.values()))], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for case, (code, out, err) in zip(cases, json.loads(done.stdout)):
        assert (code, out) == (2, ""), (case, code, err)
        assert err.startswith("everface: ") and err.count("\n") == 1, (case, err)
        assert any(word in err for word in ("permission", "read-only", "Permission")), (case, err)
    assert not (public / "x.mp4").exists() and not list(public.glob(".everface*"))
