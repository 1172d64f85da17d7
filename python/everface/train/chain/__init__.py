"""A model of rendered people from nothing, on a CPU or on a GPU that is there for half an hour: `python -m everface.train.chain` (docs/training/heads.md)."""
