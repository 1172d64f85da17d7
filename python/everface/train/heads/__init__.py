"""Rendered talking heads: people by seed from a morphable head, skin, hair, light and lens; their speech and listening with known truth."""
