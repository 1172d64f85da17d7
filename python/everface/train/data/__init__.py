"""Clips for training the transformer, as latents and audio features in sharded files."""
