"""Evaluation on held-out characters and voices: quality, long streams, ablations, student against teacher."""
