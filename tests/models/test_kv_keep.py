"""A share of the keys: what it saves and costs on the bundled model, how a profile is made, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from everface import cli
from everface.core.config import Deployment, ModelConfig, StreamConfig
from everface.core.errors import BadInput, BadWeights
from everface.core.regions import cells
from everface.kernels.attention.block_causal import keys_read
from everface.media.audio import read_audio
from everface.media.image import fit_image, read_image
from everface.models.live_avatar.builders import DEFAULT_WEIGHTS, KV_PROFILE
from everface.models.live_avatar.model import LiveAvatar
from everface.models.live_talk.model import LiveTalk
from everface.networks.transformer import layers
from everface.networks.transformer.dit import cache_shape
from everface.train.evaluate.offline_stream import OfflineModel

KEEP = 0.667


def full_ring() -> int:
    """Keys of a head of the bundled model over sink and ring."""
    config = ModelConfig.read(DEFAULT_WEIGHTS / "config.json")
    assert config.size
    side = [pixels // stride for pixels, stride in zip(config.size, config.vae.stride[1:], strict=True)]
    rows, columns = cells(config.region or (0.0, 0.0, 1.0, 1.0), side, config.dit.patch_size[1])
    ring, sink = cache_shape(config.dit, rows.stop - rows.start, columns.stop - columns.start)
    return ring[1] + sink[1]


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Of every self-attention over a full ring, the keys that a head reads, as a mean over heads."""
    plain, seen = layers.block_causal, list[float]()

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, used: int, ranges: torch.Tensor | None = None) -> torch.Tensor:
        if used == len(k):
            seen.append(keys_read(used, q.shape[1], ranges))
        return plain(q, k, v, used, ranges)

    monkeypatch.setattr(layers, "block_causal", counted)
    return seen


def stream(weights: Path | None, image: Path, audio: Path, keep: float, seconds: float) -> torch.Tensor:
    """The frames, float32."""
    model = OfflineModel(weights, Deployment(kv_keep=keep))
    pcm_S = torch.cat([torch.from_numpy(part) for part in read_audio(audio)])[: int(seconds * 16_000)]
    with model.stream(fit_image(read_image(image), (model.image_size, model.image_size)), StreamConfig(seed=5)) as made:
        made.start_decoding()
        return torch.cat([made.decode(block) for block in made.blocks([pcm_S])]).float()


def test_the_bundled_model_keeps_its_video_with_two_thirds_of_the_keys(keys: list[float]) -> None:
    """Of a person and a voice that the profile was not made with."""
    case = (None, DEFAULT_WEIGHTS / "ben.png", DEFAULT_WEIGHTS / "speech.wav")
    whole = stream(*case, 1.0, 3.0)
    assert set(keys) == {full_ring()}
    calls = len(keys)
    kept = stream(*case, KEEP, 3.0)
    flops = sum(keys[calls:]) / sum(keys[:calls])  # of as many calls, with as many queries
    assert len(keys) == 2 * calls and flops <= 1 / 1.5
    psnr = 10 * torch.log10(255**2 / (kept - whole).square().mean())
    assert 40 <= psnr < 90


def test_a_profile_of_any_checkpoint_is_made_and_used(
    small_model: Path, face: Path, voice: Path, tmp_path: Path, keys: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    weights = Path(shutil.copytree(small_model, tmp_path / "weights"))
    with pytest.raises(BadInput, match="needs a profile of these weights"):
        LiveAvatar(weights, None, Deployment(kv_keep=0.5))
    assert cli.main(["profile", "kv", str(face), str(voice), "--weights", str(weights), "--threads", "1"]) == 0
    assert f"written to {weights / KV_PROFILE}" in capsys.readouterr().out
    keys.clear()
    stream(weights, face, voice, 0.5, 2.1)
    full = 232  # at 64x64
    assert keys and max(keys) < full and sum(keys) / len(keys) <= 0.5 * full
    shutil.copy(DEFAULT_WEIGHTS / KV_PROFILE, weights)
    with pytest.raises(BadWeights, match="it is the profile of another model"):
        LiveAvatar(weights, None, Deployment(kv_keep=0.5))


def test_too_little_speech_makes_no_profile(small_model: Path, face: Path, tmp_path: Path) -> None:
    from everface.train.kv_profile import measure_profile
    from everface.train.synthetic.voices import write_wav

    write_wav(tmp_path / "short.wav", torch.zeros(16_000))
    with pytest.raises(BadInput, match="too short to fill the KV cache"):
        measure_profile(small_model, face, tmp_path / "short.wav", Deployment())


def test_what_cannot_be_combined_is_refused(tmp_path: Path) -> None:
    for keep in (0.0, 1.5, float("nan")):
        with pytest.raises(BadInput, match="cannot be kept: choose from"):
            Deployment(kv_keep=keep)
    with pytest.raises(BadInput, match="attention by cudnn cannot be combined with a share of the keys"):
        Deployment(kv_keep=0.5, attention="cudnn")
    with pytest.raises(BadInput, match="leave kv_keep out"):
        LiveTalk(tmp_path, None, Deployment(kv_keep=0.5))
