"""video ops, one file each."""
