"""A model of rendered people from nothing, on a GPU that is there for half an hour: `python -m everface.train.rented` (docs/training/heads.md)."""
