"""linear ops, one file each."""
