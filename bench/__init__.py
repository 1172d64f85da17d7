"""Figures of this machine: `python -m bench.gpu` for all of them on a GPU, or any one file with pytest."""
