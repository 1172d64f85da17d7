"""The causal transformer: layers, rotations, caches, schedule."""
