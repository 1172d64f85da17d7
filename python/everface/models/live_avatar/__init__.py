"""Live Avatar (arXiv 2512.04677): a causal audio-driven video diffusion model, one role for each denoising step and one for the decoder."""
