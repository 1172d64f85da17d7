"""Flow matching on windows of true clips: the bidirectional teacher, and stage 1, a causal student by diffusion forcing."""
