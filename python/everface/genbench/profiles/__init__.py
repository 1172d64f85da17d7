"""Accelerated profiles and their distance from the exact one, on the same seed and clips: `everface genbench profiles`."""
