"""Training of the default model's video VAE, and of its decoder alone on long streams."""
