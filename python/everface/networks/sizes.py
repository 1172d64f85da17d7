"""Numbers of parameters of the models and of values that a stream keeps, counted from the configuration. Builds nothing.

Legend: D width, F width of the FFN, c channels, h x w latent cells of a frame.
"""

from __future__ import annotations

import math

from everface.core.config import LATENT_FRAMES, DiTConfig, VAEConfig
from everface.networks.transformer.dit import cache_shape

DECODED_FRAMES = 12  # of a block


def dit_parameters(cfg: DiTConfig) -> tuple[int, int]:
    """(those that the official 8-bit policy stores in one byte, all others) of the transformer."""
    dim, ffn, layers, injectors = cfg.dim, cfg.ffn_dim, cfg.num_layers, len(cfg.audio_inject_layers)
    quantized = layers * (8 * dim * dim + 2 * dim * ffn) + injectors * 6 * dim * dim
    attention = 4 * dim + 2 * dim  # biases, norms of q and k
    block = 2 * attention + 2 * dim + ffn + dim + 6 * dim
    injector = attention + 2 * dim
    patches = [(cfg.in_dim, cfg.patch_size), (cfg.cond_dim, cfg.patch_size)]
    rows, cols = cfg.patch_size[1:]
    patches += [(cfg.in_dim, (k, k * rows, k * cols)) for k in (1, 2, 4)]  # the frame packer
    embeddings = sum(_layer(channels * math.prod(patch), dim) for channels, patch in patches) + 3 * dim
    embeddings += _layer(cfg.text_dim, dim) + _layer(dim, dim)
    embeddings += _layer(cfg.freq_dim, dim) + _layer(dim, dim) + _layer(dim, 6 * dim)
    quarter = dim // 4
    audio = cfg.wav2vec_layers + _layer(3 * cfg.audio_dim, quarter * cfg.num_audio_token) + _layer(3 * cfg.audio_dim, quarter)
    audio += _layer(3 * quarter, 2 * quarter) + _layer(3 * (dim // 2), dim) + _layer(dim, dim) + dim
    head = _layer(dim, cfg.out_dim * cfg.patch_size[1] * cfg.patch_size[2]) + 2 * dim
    return quantized, layers * block + injectors * injector + embeddings + audio + head


def dit_bytes(cfg: DiTConfig, quantized: bool) -> int:
    """Of a fused model for inference, in bfloat16; if `quantized`, with 8 bits and a float32 scale an output channel where
    everface.weights.quantize.ROWS and AUDIO_ROWS say so. The head is in float32."""
    dim, ffn, layers, injectors = cfg.dim, cfg.ffn_dim, cfg.num_layers, len(cfg.audio_inject_layers)
    total = 2 * sum(dit_parameters(cfg)) + 2 * _layer(dim, cfg.out_dim * cfg.patch_size[1] * cfg.patch_size[2])
    if not quantized:
        return total
    rows = layers * (6 * dim * dim + 2 * dim * ffn) + injectors * 2 * dim * dim
    channels = layers * (7 * dim + ffn) + injectors * 2 * dim
    return total - rows + 4 * channels


def text_bytes(cfg: DiTConfig) -> int:
    """Of the layers in bfloat16 that make keys and values of a prompt."""
    return 2 * cfg.num_layers * 2 * _layer(cfg.dim, cfg.dim)


def ring_values(cfg: DiTConfig, h: int, w: int) -> int:
    """Keys and values that one denoising step keeps of one session: of the sink, then of its ring."""
    return 2 * sum(math.prod(size) for size in cache_shape(cfg, h, w))


def sink_values(cfg: DiTConfig, h: int, w: int) -> int:
    """Un-rotated keys of the sink, and keys and values of the prompt: what a device keeps of one session, however many its steps."""
    return math.prod(cache_shape(cfg, h, w)[1]) + 2 * cfg.num_layers * cfg.text_len * cfg.dim


def step_work_values(cfg: DiTConfig, h: int, w: int) -> int:
    """Memory of a forward, estimated: the FFN's hidden row and eight rows of width D for each token of a block."""
    tokens = cfg.block_frames * (h // cfg.patch_size[1]) * (w // cfg.patch_size[2])
    return tokens * (cfg.ffn_dim + 8 * cfg.dim)


class _Convolutions:
    """Counts the parameters of a VAE's layers, and what its causal convolutions keep of a stream of `area` positions a frame."""

    def __init__(self, area: int) -> None:
        self.parameters, self.state, self.area = 0, 0, area

    def causal(self, c_in: int, c_out: int, space: int = 9) -> None:
        self.parameters += _layer(3 * space * c_in, c_out)
        self.state += 2 * c_in * self.area  # its last two input frames

    def residual(self, c_in: int, c_out: int) -> None:
        self.causal(c_in, c_out)
        self.causal(c_out, c_out)
        self.parameters += c_in + c_out + (_layer(c_in, c_out) if c_in != c_out else 0)

    def middle(self, width: int) -> None:
        self.residual(width, width)
        self.parameters += width + _layer(width, 3 * width) + _layer(width, width)  # attention
        self.residual(width, width)


def decoder_sizes(cfg: VAEConfig, h: int, w: int) -> tuple[int, int]:
    """(parameters of the VAE's decoder, values that its causal convolutions keep of one stream)."""
    count, width = _Convolutions(h * w), cfg.dim * cfg.dim_mult[-1]
    count.parameters += _layer(cfg.z_dim, cfg.z_dim)
    count.causal(cfg.z_dim, width)
    count.middle(width)
    temporal = cfg.temperal_downsample[::-1]
    for level, (mult, blocks) in enumerate(zip(cfg.dim_mult[::-1], cfg.decoder_blocks)):
        for _ in range(blocks):
            count.residual(width, cfg.dim * mult)
            width = cfg.dim * mult
        if level < len(cfg.dim_mult) - 1:
            if temporal[level]:
                count.causal(width, 2 * width, space=1)
            count.parameters += _layer(9 * width, width // 2)
            width, count.area = width // 2, 4 * count.area
    count.parameters += width
    count.causal(width, cfg.pixel_values)
    return count.parameters, count.state


def encoder_sizes(cfg: VAEConfig, h: int, w: int) -> tuple[int, int]:
    """The same of its encoder."""
    count, width = _Convolutions(level_0(cfg, h, w)), cfg.dim * cfg.dim_mult[0]
    count.causal(cfg.pixel_values, width)
    for level, (mult, blocks) in enumerate(zip(cfg.dim_mult, cfg.encoder_blocks)):
        for _ in range(blocks):
            count.residual(width, cfg.dim * mult)
            width = cfg.dim * mult
        if level < len(cfg.dim_mult) - 1:
            count.parameters += _layer(9 * width, width)
            count.area //= 4
            if cfg.temperal_downsample[level]:
                count.parameters += _layer(3 * width, width)
                count.state += width * count.area  # the last frame
    count.middle(width)
    count.parameters += width + _layer(2 * cfg.z_dim, 2 * cfg.z_dim)
    count.causal(width, 2 * cfg.z_dim)
    return count.parameters, count.state


def level_0(cfg: VAEConfig, h: int, w: int) -> int:
    """Positions of a frame at the VAE's full resolution."""
    return h * w * (cfg.stride[1] // cfg.patch_size) * (cfg.stride[2] // cfg.patch_size)


def decode_work_values(cfg: VAEConfig, h: int, w: int) -> int:
    """Memory of decoding a block, estimated: four tensors of its widest layer, the frames at full size."""
    return 4 * cfg.dim * cfg.dim_mult[0] * DECODED_FRAMES * level_0(cfg, h, w)


def encode_work_values(cfg: VAEConfig, h: int, w: int) -> int:
    """Memory of encoding the reference image on a GPU: the encoder, its stream, and, estimated, three tensors of its widest layer for the
    frames of a latent."""
    widest = cfg.dim * cfg.dim_mult[0] * LATENT_FRAMES * level_0(cfg, h, w)
    return sum(encoder_sizes(cfg, h, w)) + 3 * widest


def _layer(inputs: int, outputs: int) -> int:
    """Weights and biases of a linear layer or a convolution."""
    return inputs * outputs + outputs
