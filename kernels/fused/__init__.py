"""fused ops, one file each."""
