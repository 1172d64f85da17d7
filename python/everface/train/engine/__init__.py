"""What every training run shares: the loop, optimizer, averaged weights, checkpoints, run log, processes and sharding."""
