"""The streaming video VAE."""
