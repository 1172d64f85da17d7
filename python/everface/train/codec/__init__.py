"""Training of small video VAEs, and of its decoder alone on long streams."""
