"""Cases around the transformer: video VAE, text encoder, audio features, the size of the image."""

from __future__ import annotations

import re

import torch

from everface.core.config import TextConfig, VAEConfig
from everface.media.crop import plan_crop, target_size
from everface.networks.audio.wav2vec import Wav2Vec2, bucket, bucket_rows, build_wav2vec2, normalize, resample_50_to_30
from everface.networks.text import UMT5Encoder, relative_bucket
from everface.networks.video.vae import VAE
from everface.parity.dit import fill
from everface.parity.golden import Golden
from everface.parity.report import Check


def load_vae(file: Golden) -> VAE:
    """The VAE of the folder's `vae_weights`. Official files have one number of blocks, for all levels; decoders have one more."""
    weights = file.beside("vae_weights")
    levels, blocks = len(weights.setting("dim_mult")), weights.setting("num_res_blocks")
    counts = {"encoder_blocks": [blocks] * levels, "decoder_blocks": [blocks + 1] * levels}
    model = VAE(VAEConfig.from_dict(counts | weights.config))
    fill(model, weights, dict(weights))
    return model.eval()


def vae(file: Golden, check: Check) -> None:
    """Encoding, decoding at once and as a stream, and what the stream remembers."""
    model = load_vae(file)
    for name in [n.removesuffix(".in") for n in file if n.startswith("enc.") and n.endswith(".in")]:
        check(f"{name}.latent", model.encode(file[f"{name}.in"][None]), 1e-4)
    z = file["dec.z"][None]
    video = model.decode(z)
    check("dec.all_raw", video, 1e-4)
    check("dec.all", video.clamp(-1, 1), 1e-4)
    stream = model.stream()
    for i, (first, end) in enumerate(file.setting("chunks")):
        check(f"stream.chunk{i}", model.decode_stream(z[:, :, first:end], stream).clamp(-1, 1), 1e-4)
        for slot, cache in enumerate(stream.caches):
            if (name := f"stream.cache_after_chunk{i}.{slot:02d}") in file and cache is not None:
                check(name, cache, 1e-4)


def t5(file: Golden, check: Check) -> None:
    """Buckets, the encoder on a padded batch, its first layers, and a sequence without padding."""
    config = TextConfig.from_dict(file.config)
    model = UMT5Encoder(config)
    fill(model, file, file.below("w."))
    with check.part("bucket.index"):
        check("bucket.index", relative_bucket(file["bucket.rel_pos"], config.num_buckets, config.max_dist), 0)
    ids, mask = file["ids"], file["mask"]
    lengths = mask.sum(1).tolist()
    out = model(ids, mask)
    for row, length in enumerate(lengths):
        check(f"context{row}", out[row, :length], 5e-5)
    x = model.token_embedding(ids)
    for layer, block in enumerate(model.blocks):
        x = block(x, mask.bool()[:, None, None])
        for name in [n for n in file if re.fullmatch(rf"block{layer}\.out_row\d+", n)]:
            row = int(name.split("row")[1])
            check(name, x[row, : lengths[row]], 5e-5)
    with check.part("nomask.out"):
        check("nomask.out", model(ids[1:2, : file["nomask.out"].shape[0]])[0], 5e-5)


def wav2vec2(file: Golden, check: Check) -> None:
    """Normalized audio, every hidden state, and the states at 30 a second."""
    front_end = Wav2Vec2(build_wav2vec2(file.config, file.below("w.")))
    check("wav_normalised", normalize(file["wav"]), 5e-5)
    states = front_end.hidden_states(normalize(file["wav"]))
    check("hidden_states", states, 5e-5)
    check("feat30", resample_50_to_30(states), 5e-5)


def audio_bucket(file: Golden, check: Check) -> None:
    """Resampling from 50 to 30 a second, and the row that each video frame takes."""
    for name in sorted(file):
        kind, case, *rest = name.split(".")
        if kind == "interp" and rest == ["in"]:
            check(f"interp.{case}.out", resample_50_to_30(file[name]), 2e-4)
        elif kind == "bucket" and rest[-1:] == ["index"]:
            check(name, bucket_rows(int(case[1:]), int(rest[0][2:])), 0)
    with check.part("bucket.table_T30_batch_repeats"):
        table = file["bucket.table_T30_batch_repeats"].tolist()
        made = [[rows, frames, len(bucket_rows(rows, frames)) // frames] for rows, frames, _ in table]
        check("bucket.table_T30_batch_repeats", torch.tensor(made), 0)
    with check.part("bucket.values.out"):
        held, frames = file["bucket.values.in"], file["bucket.values.out"].shape[0]
        clips = (c for c in range(1, frames + 1) if frames % c == 0 and len(bucket_rows(held.shape[1], frames // c)) == frames)
        # the file has the number of frames of all clips; any cut of them gives the same rows
        check("bucket.values.out", bucket(held, frames // next(clips, 1)).permute(2, 0, 1), 0)


def preprocess(file: Golden, check: Check) -> None:
    """Size of the video, of the resized image, and its black bars: a row of integers an image."""
    columns = file.setting("columns")
    made = []
    for values in file["table"].tolist():
        row = dict(zip(columns, values, strict=True))
        size = target_size(row["img_h"], row["img_w"], row["max_area"])
        crop = plan_crop(row["img_h"], row["img_w"], size, "official")
        found = {"gen_h": size[0], "gen_w": size[1], "resized_h": crop.resized_h, "resized_w": crop.resized_w}
        row |= found | {"pad_rows": crop.pad_rows, "pad_cols": crop.pad_cols}
        made.append([row[column] for column in columns])
    check("table", torch.tensor(made), 0)
