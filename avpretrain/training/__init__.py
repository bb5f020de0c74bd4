"""The engine: loop, checkpoints, metrics."""
