"""Describes this machine, and plans a placement of the official model on devices that may be elsewhere."""
