"""Numbers of parameters of the models and of values that a stream keeps, counted from the configuration. Builds nothing.

Legend: D width, F width of the FFN, c channels, h x w latent cells of a frame.
"""

from __future__ import annotations

import math

from everface.core.config import LATENT_STRIDE, DiTConfig, VAEConfig
from everface.networks.transformer.dit import cache_shape

DECODED_FRAMES = 12  # of a block


def dit_parameters(cfg: DiTConfig) -> tuple[int, int]:
    """(those that the 8-bit policy of everface.weights.quantize stores in one byte, all others) of the transformer."""
    dim, ffn, layers, injectors = cfg.dim, cfg.ffn_dim, cfg.num_layers, len(cfg.audio_inject_layers)
    quantized = layers * (8 * dim * dim + 2 * dim * ffn) + injectors * 6 * dim * dim
    attention = 4 * dim + 2 * dim  # biases, norms of q and k
    block = 2 * attention + 2 * dim + ffn + dim + 6 * dim
    injector = attention + 2 * dim
    patches = [(cfg.in_dim, cfg.patch_size), (cfg.cond_dim, cfg.patch_size)]
    patches += [(cfg.in_dim, patch) for patch in ((1, 2, 2), (2, 4, 4), (4, 8, 8))]  # the frame packer
    embeddings = sum(_layer(channels * math.prod(patch), dim) for channels, patch in patches) + 3 * dim
    embeddings += _layer(cfg.text_dim, dim) + _layer(dim, dim)
    embeddings += _layer(cfg.freq_dim, dim) + _layer(dim, dim) + _layer(dim, 6 * dim)
    quarter = dim // 4
    audio = cfg.wav2vec_layers + _layer(3 * cfg.audio_dim, quarter * cfg.num_audio_token) + _layer(3 * cfg.audio_dim, quarter)
    audio += _layer(3 * quarter, 2 * quarter) + _layer(3 * (dim // 2), dim) + _layer(dim, dim) + dim
    head = _layer(dim, cfg.out_dim * cfg.patch_size[1] * cfg.patch_size[2]) + 2 * dim
    return quantized, layers * block + injectors * injector + embeddings + audio + head


def dit_bytes(cfg: DiTConfig, quantized: bool) -> int:
    """Of the weights in bfloat16; if `quantized`, in 8 bits where the policy applies."""
    linear, rest = dit_parameters(cfg)
    return linear * (1 if quantized else 2) + 2 * rest


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


def decoder_sizes(cfg: VAEConfig, h: int, w: int) -> tuple[int, int]:
    """(parameters of the VAE's decoder, values that its causal convolutions keep of one stream)."""
    parameters, state = _layer(cfg.z_dim, cfg.z_dim), 0
    area, width = h * w, cfg.dim * cfg.dim_mult[-1]

    def convolve(c_in: int, c_out: int, space: int = 9) -> None:
        nonlocal parameters, state
        parameters += _layer(3 * space * c_in, c_out)
        state += 2 * c_in * area  # its last two input frames

    def residual(c_in: int, c_out: int) -> None:
        nonlocal parameters
        convolve(c_in, c_out)
        convolve(c_out, c_out)
        parameters += c_in + c_out + (_layer(c_in, c_out) if c_in != c_out else 0)

    convolve(cfg.z_dim, width)
    residual(width, width)
    parameters += width + _layer(width, 3 * width) + _layer(width, width)  # attention
    residual(width, width)
    temporal = cfg.temperal_downsample[::-1]
    for level, (mult, blocks) in enumerate(zip(cfg.dim_mult[::-1], cfg.decoder_blocks)):
        for _ in range(blocks):
            residual(width, cfg.dim * mult)
            width = cfg.dim * mult
        if level < len(cfg.dim_mult) - 1:
            if temporal[level]:
                convolve(width, 2 * width, space=1)
            parameters += _layer(9 * width, width // 2)
            width, area = width // 2, 4 * area
    parameters += width
    convolve(width, 3)
    return parameters, state


def decode_work_values(cfg: VAEConfig, h: int, w: int) -> int:
    """Memory of decoding a block, estimated: four tensors of its widest layer, the frames at full size."""
    return 4 * cfg.dim * cfg.dim_mult[0] * DECODED_FRAMES * h * w * LATENT_STRIDE[1] * LATENT_STRIDE[2]


def encode_work_values(cfg: VAEConfig, h: int, w: int) -> int:
    """Memory of encoding the reference image, estimated: three tensors of the widest layer for five latents' frames."""
    return 3 * cfg.dim * cfg.dim_mult[0] * 5 * LATENT_STRIDE[0] * h * w * LATENT_STRIDE[1] * LATENT_STRIDE[2]


def _layer(inputs: int, outputs: int) -> int:
    """Weights and biases of a linear layer or a convolution."""
    return inputs * outputs + outputs
