"""The layouts of a model folder: the official one (facts of the release: Wan-AI/Wan2.2-S2V-14B), our own smaller one, and LiveTalk's.

official    config.json (the DiT's), diffusion_pytorch_model-*-of-*.safetensors + index, models_t5_umt5-xxl-enc-bf16.pth,
            google/umt5-xxl/, Wan2.1_VAE.pth, wav2vec2-large-xlsr-53-english/, and liveavatar.safetensors here or elsewhere
everface    config.json (a whole ModelConfig), dit.safetensors, vae.safetensors; audio and text need no files
livetalk    model.safetensors (the DiT, complete), models_t5_umt5-xxl-enc-bf16.pth, google/umt5-xxl/, Wan2.1_VAE.pth, wav2vec2-base-960h/;
            the release has no config.json: one with sections dit, vae, text and size gives other sizes
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from everface.core.config import DiTConfig, ModelConfig
from everface.core.errors import BadWeights
from everface.core.json_file import read_json
from everface.core.live_talk_config import LiveTalkModelConfig

CONFIG = "config.json"
DIT_INDEX = "diffusion_pytorch_model.safetensors.index.json"
DIT_SHARDS = "diffusion_pytorch_model-*-of-*.safetensors"
TEXT = "models_t5_umt5-xxl-enc-bf16.pth"
TOKENIZER = "google/umt5-xxl"
VAE = "Wan2.1_VAE.pth"
AUDIO = "wav2vec2-large-xlsr-53-english"
AUDIO_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there
LORA = "liveavatar.safetensors"
LIVE_TALK_DIT = "model.safetensors"
LIVE_TALK_AUDIO = "wav2vec2-base-960h"
OWN_DIT = "dit.safetensors"
OWN_VAE = "vae.safetensors"

# Settings of the official configuration that choose an architecture. Only the released choice is implemented.
ARCHITECTURE: dict[str, Any] = {
    "model_type": "s2v",
    "enable_adain": True,
    "adain_mode": "attn_norm",
    "zero_timestep": True,
    "add_last_motion": True,
    "enable_framepack": True,
    "framepack_drop_mode": "padd",
    "enable_motioner": False,
    "enable_tsm": False,
    "trainable_token_pos_emb": False,
    "qk_norm": True,
    "cross_attn_norm": True,
}


@dataclass(frozen=True)
class Layout:
    """Paths of the parts of one model. A part that this model does not have is None."""

    kind: str  # "official", "everface" or "livetalk"
    root: Path
    config: ModelConfig | LiveTalkModelConfig
    dit: Path  # a safetensors file, or the index of several
    vae: Path  # .pth (official) or .safetensors
    text: Path | None = None
    tokenizer: Path | None = None
    audio: Path | None = None
    lora: Path | None = None

    def audio_weights(self) -> Path | None:
        """The weights in the wav2vec2 folder: safetensors if it has them, else the older `.bin`."""
        if self.audio is None:
            return None
        return next((self.audio / name for name in AUDIO_WEIGHTS if (self.audio / name).exists()), self.audio / AUDIO_WEIGHTS[0])


def detect_layout(root: Path) -> Layout:
    """The layout of a folder, with its configuration. Reads no weights. Raises BadWeights when it is neither."""
    try:
        return _detect_layout(root)
    except OSError as error:
        raise BadWeights(f"the weights in {root} cannot be read ({error.strerror}): check the name and its permissions") from None


def _detect_layout(root: Path) -> Layout:
    if not root.is_dir():
        raise BadWeights(f"{root} is not a folder; name the folder that holds the model's {CONFIG}")
    if (root / OWN_DIT).exists() and (root / CONFIG).exists():
        config = ModelConfig.read(root / CONFIG)
        return Layout("everface", root, config, root / OWN_DIT, root / OWN_VAE)
    if (root / DIT_INDEX).exists() or any(root.glob(DIT_SHARDS)):
        lora = root / LORA
        return Layout(
            "official", root, read_official_config(root / CONFIG), root / DIT_INDEX, root / VAE,
            root / TEXT, root / TOKENIZER, root / AUDIO, lora if lora.exists() else None,
        )  # fmt: skip
    if (root / LIVE_TALK_DIT).exists():
        config = LiveTalkModelConfig.from_dict(read_json(root / CONFIG) if (root / CONFIG).exists() else {})
        text, tokenizer = (root / TEXT, root / TOKENIZER) if config.text.kind == "umt5" else (None, None)
        return Layout("livetalk", root, config, root / LIVE_TALK_DIT, root / VAE, text, tokenizer, root / LIVE_TALK_AUDIO)
    raise BadWeights(
        f"{root} holds neither the official weights ({CONFIG}, {DIT_INDEX}), nor LiveTalk ({LIVE_TALK_DIT}), nor a model of our own "
        f"({CONFIG}, {OWN_DIT}); run `everface pull` or name another folder"
    )


def read_official_config(path: Path) -> ModelConfig:
    """The official `config.json` describes the DiT alone. Sections `vae` and `text`, which the release lacks, may give other
    sizes of those parts; without them they have the released sizes. Raises BadWeights for another architecture."""
    raw = read_json(path)
    if "model_type" not in raw:
        raise BadWeights(f"{path} has no model_type, as Wan2.2-S2V-14B has: weights of another architecture")
    for key, released in ARCHITECTURE.items():
        if (found := raw.get(key, released)) != released:
            raise BadWeights(f"{path} has {key} = {found!r}, not {released!r}: weights of another architecture")
    for field in fields(DiTConfig):
        value = raw.get(field.name, field.default)
        if isinstance(field.default, int) and (type(value) is not int or value < 1):
            raise BadWeights(f"{path} has {field.name} = {value!r}, which is not a positive whole number; fetch it again")
    vae, text = raw.get("vae", {}), raw.get("text", {})
    if not isinstance(vae, dict) or not isinstance(text, dict):
        raise BadWeights(f"{path} has a section vae or text that is not an object of sizes; fetch it again")
    try:
        return ModelConfig.from_dict({"dit": raw, "vae": vae, "text": text})
    except BadWeights as error:
        raise BadWeights(f"the configuration {path} cannot be used: {error}") from None
