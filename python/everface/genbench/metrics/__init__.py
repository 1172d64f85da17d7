"""Metrics of a clip, one file each."""
