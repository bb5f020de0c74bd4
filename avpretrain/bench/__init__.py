"""Measured time and memory: step, loader, features, dry run."""
