"""Training of a finished model's decoder with a critic: sharper frames of the same latents."""
