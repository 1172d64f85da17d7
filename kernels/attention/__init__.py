"""attention ops, one file each."""
