"""Floor 2: what is computed. Mathematics only, every size from the configuration."""
