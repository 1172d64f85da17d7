"""The pull: one recorded commit, verified files, and one sentence without network. The hub is replaced at its two calls."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest

from everface.cli import main
from everface.core.errors import BadInput, BadWeights, Unavailable
from everface.weights import layout, pull
from everface.weights.load import open_checkpoint

REPOS = list(pull.PATTERNS)
PACKAGE = Path(pull.__file__).parents[2]


class Hub:
    """Serves a tiny checkpoint under the two official names; the LoRA from its own repository."""

    def __init__(self, root: Path) -> None:
        self.root, self.commit, self.asked, self.fetched = root, "a" * 40, [], []
        self.damage = ""

    def model_info(self, api: object, repo: str, revision: str, files_metadata: bool) -> huggingface_hub.ModelInfo:
        assert files_metadata
        self.asked.append((repo, revision))
        siblings = []
        for path in (p for p in sorted(self.root.rglob("*")) if p.is_file() and (p.name == layout.LORA) == (repo == REPOS[1])):
            size, sha256 = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
            lfs = {"size": size, "sha256": sha256, "pointerSize": 1} if path.suffix != ".json" else None
            siblings.append({"rfilename": str(path.relative_to(self.root)), "size": size, "lfs": lfs})
        siblings.append({"rfilename": "assets/logo.png", "size": 1 << 60})
        return huggingface_hub.ModelInfo(id=repo, sha=self.commit, siblings=siblings, tags=[])

    def snapshot_download(self, repo: str, revision: str, local_dir: Path, allow_patterns: list[str], max_workers: int) -> str:
        self.fetched.append((repo, revision))
        paths = {p for pattern in allow_patterns for p in self.root.glob(pattern) if (p.name == layout.LORA) == (repo == REPOS[1])}
        for path in paths:
            target = local_dir / path.relative_to(self.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            if path.name == self.damage:
                content = bytearray(path.read_bytes())
                content[-1] ^= 1
                target.write_bytes(content)
        return str(local_dir)


@pytest.fixture
def hub(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(pristine)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda api, *args, **named: hub.model_info(api, *args, **named))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


def test_pulled_folder_opens(hub: Hub, tmp_path: Path, cache: Path) -> None:
    folder = pull.pull(tmp_path / "model")
    checkpoint = open_checkpoint(folder, cache=cache)
    checkpoint.prepare()
    assert checkpoint.tokenizer().is_dir() and checkpoint.lora == folder / layout.LORA


def test_commit_is_resolved_once_and_kept(hub: Hub, tmp_path: Path) -> None:
    folder = pull.pull(tmp_path)
    record = json.loads((folder / pull.RECORD).read_text())
    assert [record[repo]["commit"] for repo in REPOS] == ["a" * 40] * 2
    assert record[REPOS[0]]["files"][layout.VAE]["sha256"]
    hub.commit = "b" * 40
    pull.pull(tmp_path)
    assert hub.asked == [(repo, "main") for repo in REPOS] and len(hub.fetched) == 2, "a complete folder needs no network"
    (folder / layout.VAE).unlink()
    pull.pull(tmp_path)
    assert len(hub.asked) == 2 and hub.fetched[2:] == [(REPOS[0], "a" * 40)] and (folder / layout.VAE).is_file()


@pytest.mark.parametrize("file", [layout.VAE, layout.LORA])
def test_wrong_hash(hub: Hub, tmp_path: Path, refusal, file: str) -> None:
    hub.damage = file
    for _ in range(2):  # and a second try does not take it for good
        with pytest.raises(BadWeights) as caught:
            pull.pull(tmp_path)
        refusal(caught.value, str(tmp_path / file), "sha256")
    hub.damage = ""
    (tmp_path / file).unlink()
    assert (pull.pull(tmp_path) / file).is_file()


def test_full_disk_is_told_before_the_start(hub: Hub, tmp_path: Path, refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(Unavailable) as caught:
        pull.pull(tmp_path)
    refusal(caught.value, REPOS[0], "GB", str(tmp_path))
    assert hub.fetched == []


def test_no_network(hub: Hub, tmp_path: Path, refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **named: object) -> None:
        raise ConnectionError("name resolution failed\nlong story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(Unavailable) as caught:
        pull.pull(tmp_path)
    refusal(caught.value, REPOS[0], "name resolution failed")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", fail)
    with pytest.raises(Unavailable) as caught:
        pull.pull(tmp_path / "new")
    refusal(caught.value, REPOS[0], "name resolution failed")


def test_damaged_record(tmp_path: Path, refusal) -> None:
    (tmp_path / pull.RECORD).write_text("{")
    with pytest.raises(BadWeights) as caught:
        pull.pull(tmp_path)
    refusal(caught.value, str(tmp_path / pull.RECORD), "delete it")


def test_offline_for_real(tmp_path: Path, refusal) -> None:
    """HF_HUB_OFFLINE=1 in a separate process, once with nothing recorded and once with a record but no files."""
    script = (
        "import sys, pathlib\n"
        "from everface.core.errors import Unavailable\n"
        "from everface.weights.pull import pull\n"
        "try: pull(pathlib.Path(sys.argv[1]))\n"
        "except Unavailable as error: print(error); sys.exit(3)\n"
    )
    entry = {"commit": "a" * 40, "files": {layout.VAE: {"bytes": 1, "sha256": None}}, "verified": False}
    for record, named in (({}, "has nothing of"), ({REPOS[0]: entry}, layout.VAE)):
        (tmp_path / pull.RECORD).write_text(json.dumps(record))
        env = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(PACKAGE), "HF_HOME": str(tmp_path / "hf")}
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], env=env, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 3, done.stderr
        refusal(Unavailable(done.stdout.strip()), REPOS[0], "HF_HUB_OFFLINE", named)


def test_a_license_that_forbids_something_is_named_before_anything_is_fetched(
    tmp_path: Path, refusal, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    fetched: list[tuple[str, Path]] = []

    def info(api: object, repo: str, **_: object) -> huggingface_hub.ModelInfo:
        asked.append(repo)
        names = ["model.safetensors", "config.json", layout.VAE, layout.TEXT, f"{layout.TOKENIZER}/tokenizer.json", "README.md"]
        siblings = [{"rfilename": name, "size": 1, "lfs": None} for name in names]
        return huggingface_hub.ModelInfo(id=repo, sha="c" * 40, siblings=siblings, tags=[])

    def fetch(repo: str, local_dir: Path, allow_patterns: list[str], **_: object) -> None:
        fetched.append((repo, local_dir))
        for name in allow_patterns:
            path = local_dir / name.replace("*", "tokenizer.json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert main(["pull", "livetalk-1.3b", "--dir", str(tmp_path / "lt")]) == 2  # stdin of a test is no terminal
    said = capsys.readouterr().err
    assert "CC BY-NC-SA 4.0" in said and "forbids commercial use" in said and "--accept-license" in said and said.count("\n") == 1
    assert asked == fetched == [] and not (tmp_path / "lt").exists()
    questions: list[str] = []
    with pytest.raises(BadInput) as caught:
        pull.pull(tmp_path / "lt", "livetalk-1.3b", lambda what: bool(questions.append(what)))
    refusal(caught.value, "--accept-license")
    assert len(questions) == 1 and asked == []
    assert main(["pull", "livetalk-1.3b", "--dir", str(tmp_path / "lt"), "--accept-license"]) == 0
    assert asked == ["GAIR/LiveTalk-1.3B-V0.1", "Wan-AI/Wan2.1-T2V-1.3B", "facebook/wav2vec2-base-960h"]
    assert [path.name for _, path in fetched] == ["lt", "lt", layout.LIVE_TALK_AUDIO]
    assert layout.detect_layout(tmp_path / "lt").kind == "livetalk"
    with pytest.raises(BadInput, match=r"choose one of live-avatar, livetalk-1\.3b"):
        pull.pull(tmp_path, "another")
