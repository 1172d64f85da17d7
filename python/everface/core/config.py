"""The three frozen configurations: of the weights (ModelConfig), of one session (StreamConfig), of the machine (Deployment)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from everface.core.env import MAX_THREADS
from everface.core.errors import BadInput, BadWeights
from everface.core.json_file import check_object, read_json, read_value
from everface.core.regions import Box, check_regions, is_box

SAMPLE_RATE = 16_000  # Hz; a session's clock counts these samples
FPS = 25  # video frames per second
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS  # 640
LATENT_FRAMES = 4  # video frames that a latent frame holds
SIZE_STRIDE = 64  # sides of a video are multiples of it, in pixels
MAX_SIDE = 2048  # longest side of a video, in pixels
MAX_LAYERS = 1024
MAX_CHANNELS = 2048  # of the VAE
MAX_WINDOW_S = 8.0  # of audio before or behind a block


class _FromDict:
    """Builds a configuration from parsed JSON."""

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        """Ignores keys that are not fields; lists become tuples. Raises BadWeights, also for a value of another type than the default's."""
        check_object(raw, f"the section for {cls.__name__}")
        known = fields(cls)  # pyright: ignore[reportArgumentType]  each subclass is a dataclass
        return cls(**{f.name: read_value(f.name, raw[f.name], f.default) for f in known if f.name in raw})


@dataclass(frozen=True)
class TransformerConfig(_FromDict):
    """Sizes that the transformers of the Wan family have in common, named as in the official `config.json`."""

    dim: int
    ffn_dim: int
    freq_dim: int
    in_dim: int
    out_dim: int
    num_heads: int
    num_layers: int
    text_dim: int
    text_len: int
    eps: float
    block_frames: int  # latent frames denoised together
    window_blocks: int  # blocks that attend to each other through a KV cache, the current one included
    patch_size: tuple[int, int, int]

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise BadWeights(f"dim {self.dim} does not split into {self.num_heads} heads of even width: correct config.json")
        if self.num_layers > MAX_LAYERS:
            raise BadWeights(f"num_layers {self.num_layers} is more than {MAX_LAYERS}: correct config.json")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclass(frozen=True)
class DiTConfig(TransformerConfig):
    """Sizes of the causal S2V transformer, named as in the official `config.json`; the defaults are the released 14B model's."""

    dim: int = 5120
    ffn_dim: int = 13824
    freq_dim: int = 256
    in_dim: int = 16
    out_dim: int = 16
    num_heads: int = 40
    num_layers: int = 40
    text_dim: int = 4096
    text_len: int = 512
    eps: float = 1e-6
    cond_dim: int = 16
    audio_dim: int = 1024  # channels of one audio feature layer
    num_audio_token: int = 4
    audio_inject_layers: tuple[int, ...] = (0, 4, 8, 12, 16, 20, 24, 27, 30, 33, 36, 39)
    wav2vec_layers: int = 25  # hidden states that the causal audio encoder mixes
    block_frames: int = 3  # latent frames denoised together
    window_blocks: int = 4  # blocks a KV ring holds, the current one included
    patch_size: tuple[int, int, int] = (1, 2, 2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(not 0 <= i < self.num_layers for i in self.audio_inject_layers):
            raise BadWeights(f"audio_inject_layers {self.audio_inject_layers} need more layers than {self.num_layers}")


@dataclass(frozen=True)
class VAEConfig(_FromDict):
    """Sizes of the Wan 2.1 video VAE. Level 0 is full resolution; level widths are dim * dim_mult.

    With a patch_size of 2, as Wan 2.2's has it, level 0 has half the resolution: each 2x2 pixels are the channels of one position.
    """

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    temperal_downsample: tuple[bool, ...] = (False, True, True)  # the official spelling
    encoder_blocks: tuple[int, ...] = (2, 2, 2, 2)  # residual blocks per level, full resolution first
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 3)  # residual blocks per level, latent resolution first
    mean: tuple[float, ...] = (
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    )  # fmt: skip
    std: tuple[float, ...] = (
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
        3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
    )  # fmt: skip
    patch_size: int = 1  # pixels, each way, that one position of level 0 holds

    def __post_init__(self) -> None:
        blocks = sum(self.encoder_blocks) + sum(self.decoder_blocks)
        if self.dim * max(self.dim_mult, default=0) > MAX_CHANNELS or blocks > MAX_LAYERS:
            raise BadWeights(f"a VAE of more than {MAX_CHANNELS} channels or {MAX_LAYERS} blocks is not supported: correct config.json")
        levels = {len(self.dim_mult), len(self.encoder_blocks), len(self.decoder_blocks), len(self.temperal_downsample) + 1}
        if len(levels) != 1 or not len(self.mean) == len(self.std) == self.z_dim:
            raise BadWeights("the lists of the VAE's sizes have different lengths: correct config.json")
        if self.patch_size not in (1, 2):
            raise BadWeights(f"the VAE's patch_size {self.patch_size} is not 1 or 2: correct config.json")

    @property
    def stride(self) -> tuple[int, int, int]:
        """Frames, rows and columns of pixels per latent cell: (4, 8, 8) of Wan 2.1, (4, 16, 16) with a patch_size of 2."""
        pixels = self.patch_size * 2 ** (len(self.dim_mult) - 1)
        return 2 ** sum(self.temperal_downsample), pixels, pixels

    @property
    def pixel_values(self) -> int:
        """Numbers of one position of level 0: a color for each of its pixels."""
        return 3 * self.patch_size**2


@dataclass(frozen=True)
class AudioConfig(_FromDict):
    """The audio front end. kind "wav2vec2": features of every hidden layer; "logmel": `hops` mel vectors per video frame."""

    kind: str = "wav2vec2"
    mels: int = 40
    hops: int = 4  # mel vectors per 40 ms video frame, concatenated into one feature of mels * hops channels
    listens: bool = False  # features of what the person hears follow those of its own voice, in as many channels

    def __post_init__(self) -> None:
        if self.kind not in ("wav2vec2", "logmel") or max(self.mels, self.hops) > MAX_LAYERS:
            raise BadWeights(f"an audio front end {self.kind!r} of {self.mels} x {self.hops} is not supported: correct config.json")


@dataclass(frozen=True)
class TextConfig(_FromDict):
    """The prompt encoder. kind "umt5": the official one; "none": the model was trained without text and gets zeros."""

    kind: str = "umt5"
    dim: int = 4096
    dim_attn: int = 4096
    dim_ffn: int = 10240
    num_heads: int = 64
    num_layers: int = 24
    num_buckets: int = 32
    max_dist: int = 128
    vocab: int = 256384

    def __post_init__(self) -> None:
        if self.kind not in ("umt5", "none") or self.num_layers > MAX_LAYERS:
            raise BadWeights(f"a prompt encoder {self.kind!r} of {self.num_layers} layers is not supported: correct config.json")


@dataclass(frozen=True)
class LipsConfig(_FromDict):
    """How much further lips move than a small transformer draws them by itself (docs/decisions/0017-lips.md); the defaults change nothing."""

    jaw: float = 1.0  # factor on the jaw that the transformer is told of
    wider: float = 0.0  # what the warp of decoded frames adds to the mouth's width where lips are spread as far as they go, as a share
    narrower: float = 0.0  # and takes from it where they are round
    taller: float = 0.0  # what it adds to the height where the jaw is open as far as it goes

    def __post_init__(self) -> None:
        if not 0.5 <= self.jaw <= 2 or not all(0 <= share <= 0.5 for share in (self.wider, self.narrower, self.taller)):
            raise BadWeights("lips.jaw is not within 0.5..2, or wider, narrower or taller not within 0..0.5: correct config.json")


@dataclass(frozen=True)
class ModelConfig:
    """The sizes of every part of a model. It comes with the weights and is read from their `config.json`."""

    dit: DiTConfig = field(default_factory=DiTConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    text: TextConfig = field(default_factory=TextConfig)
    name: str = "wan2.2-s2v-14b + live-avatar"
    size: tuple[int, int] | None = None  # (height, width) the model was trained at, None: any multiple of 64
    noise_correlation: float = 0.0  # of the initial noise between consecutive latent frames; 0: independent, as upstream
    still_frames: int = 73  # 1 + 4k repeats of the reference image, encoded as motion history; the last latent fills the rest
    motion: bool = False  # how head and face move is drawn for a session (`networks.motion`); else left to chance, as upstream
    lips: LipsConfig = field(default_factory=LipsConfig)  # with `motion`
    region: Box | None = None  # of the image, that the transformer makes; around it stays what the image shows. None: all of it
    smaller: tuple[tuple[int, int], ...] = ()  # other sizes that it was trained at as well, the largest first: for machines that are slow

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ModelConfig:
        """Build from parsed JSON. Raises BadWeights."""
        check_object(raw, "the configuration")
        parts = {"dit": DiTConfig, "vae": VAEConfig, "audio": AudioConfig, "text": TextConfig, "lips": LipsConfig}
        config = cls(
            **{k: c.from_dict(raw.get(k, {})) for k, c in parts.items()},
            name=read_value("name", raw.get("name", cls.name), cls.name),
            size=read_value("size", raw["size"], (SIZE_STRIDE, SIZE_STRIDE)) if raw.get("size") else None,
            noise_correlation=read_value("noise_correlation", raw.get("noise_correlation", 0.0), 0.0),
            still_frames=read_value("still_frames", raw.get("still_frames", cls.still_frames), cls.still_frames),
            motion=read_value("motion", raw.get("motion", False), False),
            region=read_value("region", raw["region"], (0.0, 0.0, 1.0, 1.0)) if raw.get("region") else None,
            smaller=read_value("smaller", raw.get("smaller", ()), ((SIZE_STRIDE, SIZE_STRIDE),)),
        )
        config._check()
        return config

    def _check(self) -> None:
        for size in (self.size, *self.smaller):
            checked_size(size)
        if not 0 <= self.noise_correlation <= 1:
            raise BadWeights(f"noise_correlation {self.noise_correlation} is outside 0..1: correct config.json")
        if self.still_frames % 4 != 1 or self.still_frames > ModelConfig.still_frames:
            raise BadWeights(f"still_frames {self.still_frames} is not 1, 5, 9 ... {ModelConfig.still_frames}: correct config.json")
        if self.region is not None and not (self.motion and is_box(self.region)):
            raise BadWeights(f"region {list(self.region)} is not left, top, right and bottom as shares of the image, or heads are not still: correct config.json")

    @classmethod
    def read(cls, path: Path) -> ModelConfig:
        """Read a JSON file. Raises BadWeights."""
        raw = read_json(path)
        try:
            return cls.from_dict(raw)
        except BadWeights as error:
            raise BadWeights(f"the configuration {path} cannot be used: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def checked_size(size: tuple[int, ...] | None) -> tuple[int, int] | None:
    """Raises BadWeights for what is not the size of a video."""
    if size is None:
        return None
    try:
        height, width = size
        return check_size(height, width)
    except ValueError as error:  # BadInput is one
        raise BadWeights(f"size {size} is not a height and a width ({error}): correct config.json") from None


SAMPLERS = ("official", "skip-null")
RENDER_WINDOW_S, LIVE_WINDOW_S = (4.0, 1.0), (4.0, 0.48)  # audio before and behind a block, where the front end looks so far: docs/numerics.md
CROPS = ("auto", "face", "center")
COMPATS = ("everface", "official")
DTYPES = ("float32", "bfloat16", "fp8", "fp8-attention")  # fp8: GEMMs; fp8-attention: GEMMs and attention. See docs/numerics.md
ATTENTIONS = ("auto", "triton", "gluon", "cudnn", "flash", "flash-attn", "xformers")  # described in kernels/attention/backend.py
FP8_ATTENTIONS = ("auto", "triton", "gluon")  # of these, those that read 8-bit keys and values
RANGE_ATTENTIONS = ("auto", "triton")  # and those that read a part of the keys
MIN_KV_KEEP = 0.1
KV_KEEPS = (1.0, 0.667, 0.5)  # that genbench profiles compares; any from MIN_KV_KEEP on can be chosen


def check_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) if a video can have this size, in pixels. Raises BadInput, which names the nearest size."""
    near_h, near_w = (min(max(round(side / SIZE_STRIDE), 1), MAX_SIDE // SIZE_STRIDE) * SIZE_STRIDE for side in (height, width))
    if (near_h, near_w) != (height, width):
        raise BadInput(
            f"the size {width}x{height} cannot be used, because sides are multiples of {SIZE_STRIDE}, "
            f"from {SIZE_STRIDE}x{SIZE_STRIDE} to {MAX_SIDE}x{MAX_SIDE}: the nearest is {near_w}x{near_h}"
        )
    return height, width


def _check_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise BadInput(f"unknown {what} {value!r}: choose one of {', '.join(allowed)}")


@dataclass(frozen=True)
class StreamConfig:
    """What one session shows, and how it is computed. Raises BadInput for values that cannot be used."""

    seed: int = 420
    area: int = 704 * 384  # largest video area in pixels; the size follows the image's aspect ratio
    size: tuple[int, int] | None = None  # (height, width), overrides area
    sampler: str = "official"  # official: four forwards; skip-null: three, then straight to sigma 0
    compat: str = "everface"  # official reproduces upstream's known defects
    prompt: str = ""
    refresh_sink: bool = True  # after the first clip the first generated latent replaces the image as the attention sink; never where heads are still
    audio_window_s: tuple[float, float] | None = None  # that wav2vec2 sees before and behind a block; None: RENDER_WINDOW_S, live LIVE_WINDOW_S
    crop: str = "auto"  # of an image that has not the video's shape, by weights of one size: around the face, the center, or auto, the face if a detector is installed
    speakers: tuple[Box, ...] = ()  # the region of each of several speakers, which then have a channel of the audio each: docs/beyond.md

    def __post_init__(self) -> None:
        _check_choice("sampler", self.sampler, SAMPLERS)
        _check_choice("compat", self.compat, COMPATS)
        _check_choice("crop", self.crop, CROPS)
        if not 0 <= self.seed < 2**63:
            raise BadInput(f"seed {self.seed} is outside 0..2^63-1: choose another")
        if self.size:
            check_size(*self.size)
        check_regions(self.speakers)
        if self.audio_window_s and not all(0 <= seconds <= MAX_WINDOW_S for seconds in self.audio_window_s):
            raise BadInput(f"an audio window of {self.audio_window_s} s cannot be used: give two times from 0 to {MAX_WINDOW_S:g}")

    @property
    def steps(self) -> int:
        """Denoising forwards per block, which is also the number of step roles in a pipeline."""
        return 4 if self.sampler == "official" else 3


@dataclass(frozen=True)
class Deployment:
    """Where and how the model runs. Raises BadInput for values that cannot be used.

    `placement` is "inline", everything in the caller's process, or a number of processes, one a device.
    """

    placement: str = "inline"
    device: str = "cpu"
    dtype: str = "float32"  # one of DTYPES
    threads: int | None = None  # CPU threads per process; None: EVERFACE_THREADS, else torch's default
    timeout_s: float = 120.0  # longest time without progress while work is in flight
    sessions: int = 4  # most sessions at once
    attention: str = "auto"  # self-attention backend on a GPU; auto: the fastest one measured there, else chosen by a rule
    frames: str = "host"  # memory of finished frames: host, or (inline only) the device that made them
    text_weights: str = "device"  # place of the layers that only a new prompt needs, 4.2 GB of 14B: device, or host, where memory is short
    image_encoder: str = "device"  # or cpu: 3.8 GiB less on the first device, but seconds to minutes for every new image
    kv_keep: float = 1.0  # share of all keys that self-attention reads, below 1 by the weights' profile: everface profile kv, docs/beyond.md

    def __post_init__(self) -> None:
        _check_choice("dtype", self.dtype, DTYPES)
        _check_choice("attention", self.attention, ATTENTIONS)
        if self.threads is not None and not 1 <= self.threads <= MAX_THREADS:
            raise BadInput(f"{self.threads} threads cannot be used: choose from 1 to {MAX_THREADS}, or None for torch's default")
        if self.dtype == "fp8-attention" and self.attention not in FP8_ATTENTIONS:
            raise BadInput(
                f"attention by {self.attention} cannot be combined with the dtype fp8-attention, because it reads keys of 16 bits only: "
                f"choose the dtype fp8, or one of {', '.join(FP8_ATTENTIONS)}"
            )
        if not MIN_KV_KEEP <= self.kv_keep <= 1:
            raise BadInput(f"a share {self.kv_keep} of the keys cannot be kept: choose from {MIN_KV_KEEP} to 1, which is all of them")
        if self.kv_keep < 1 and self.attention not in RANGE_ATTENTIONS:
            raise BadInput(
                f"attention by {self.attention} cannot be combined with a share of the keys, because it reads all of them: "
                f"choose one of {', '.join(RANGE_ATTENTIONS)}"
            )
        _check_choice("memory for frames", self.frames, ("host", "device"))
        _check_choice("place for text weights", self.text_weights, ("device", "host"))
        _check_choice("place for the image encoder", self.image_encoder, ("device", "cpu"))
        if self.frames == "device" and self.placement != "inline":
            raise BadInput(
                "frames can stay on the device only with the inline placement, because processes pass them through host memory: "
                "choose the inline placement, or frames in host memory"
            )
