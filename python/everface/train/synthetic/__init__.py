"""Synthetic talking people: drawn characters, espeak-ng voices, and background audio."""
