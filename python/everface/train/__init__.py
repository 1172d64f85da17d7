"""Training and evaluation of the default model, and the two-stage distillation at full size.

Ten subpackages. Each imports only from those before it:

1. `engine`: the training loop, optimizer, checkpoints, run log, sharding. Of our models it knows only which parts of the transformer to shard.
2. `synthetic`: drawn characters, espeak-ng voices and background audio.
3. `data`: clips as latents and audio features, drawn or cut from videos; sharded files.
4. `heads`: rendered people with known truth, of whom the default model is: the same clips and videos, from a head model that is not part of the project.
5. `codec`: training of the video VAE and, on long streams, of its decoder.
6. `pretrain`: flow matching on windows of clips: the bidirectional teacher, and stage 1 (diffusion forcing).
7. `distill`: stage 2, self-forcing distribution matching on the student's own rollouts.
8. `evaluate`: quality on held-out characters, long streams, ablations, student against teacher.
9. `chain`: all of it in calls of a few minutes, on a CPU or a GPU, with rendered people.
10. `sharpen`: the decoder of a finished model once more, with a critic.

`speed` (where the time of a block goes), `kv_profile` (what each attention head needs), `bundle` (a model folder from finished runs) and `command_line` (the verbs of `everface train`) come last.
"""

ORDER = ("engine", "synthetic", "data", "heads", "codec", "pretrain", "distill", "evaluate", "speed", "kv_profile", "bundle", "chain", "sharpen", "command_line")
