"""LiveTalk (arXiv 2512.23576): a causal audio-driven avatar of 1.3 G parameters. Its steps are in series, as its cache holds clean latents."""
