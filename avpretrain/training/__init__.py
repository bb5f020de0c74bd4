"""The training engine: loop, checkpoints, metrics."""
