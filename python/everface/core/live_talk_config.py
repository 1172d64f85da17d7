"""The configuration of LiveTalk's weights: a second model, with sizes of its own."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from everface.core.config import SIZE_STRIDE, TextConfig, TransformerConfig, VAEConfig, checked_size
from everface.core.errors import BadWeights
from everface.core.json_file import check_object, read_value


@dataclass(frozen=True)
class LiveTalkConfig(TransformerConfig):
    """Sizes of LiveTalk's transformer; the defaults are the released 1.3B model's."""

    dim: int = 1536
    ffn_dim: int = 8960
    freq_dim: int = 256
    in_dim: int = 33  # noisy latents, the reference's, a mask
    out_dim: int = 16
    num_heads: int = 12
    num_layers: int = 30
    text_dim: int = 4096
    text_len: int = 512
    eps: float = 1e-6
    audio_channels: int = 10752  # of a video frame: 14 hidden states of 768
    audio_hidden_size: int = 32
    audio_layers: tuple[int, ...] = tuple(range(2, 16))  # the audio is added before each of them
    block_frames: int = 3
    window_blocks: int = 5  # the sink included
    sink_blocks: int = 3  # the first blocks of a stream, which stay in the cache
    patch_size: tuple[int, int, int] = (1, 2, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(not 0 <= i < self.num_layers for i in self.audio_layers):
            raise BadWeights(f"audio_layers {self.audio_layers} need more layers than {self.num_layers}: correct config.json")
        if self.in_dim != 2 * self.out_dim + 1 or not 0 <= self.sink_blocks < self.window_blocks:
            raise BadWeights(f"in_dim {self.in_dim} or a window of {self.window_blocks} blocks cannot be used: correct config.json")


@dataclass(frozen=True)
class LiveTalkModelConfig:
    """The sizes of every part of LiveTalk. The release has no configuration: without one, these are its sizes."""

    dit: LiveTalkConfig = field(default_factory=LiveTalkConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    text: TextConfig = field(default_factory=TextConfig)
    name: str = "livetalk-1.3b"
    size: tuple[int, int] | None = (512, 512)  # (height, width) the model was trained at, None: any multiple of 64

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> LiveTalkModelConfig:
        """Build from parsed JSON. Raises BadWeights."""
        check_object(raw, "the configuration")
        parts = {"dit": LiveTalkConfig, "vae": VAEConfig, "text": TextConfig}
        size = raw.get("size", cls.size)
        return cls(
            **{k: c.from_dict(raw.get(k, {})) for k, c in parts.items()},
            name=read_value("name", raw.get("name", cls.name), cls.name),
            size=checked_size(read_value("size", size, (SIZE_STRIDE, SIZE_STRIDE)) if size else None),
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
