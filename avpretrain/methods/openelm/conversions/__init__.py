"""Weights in the layouts of others, and back."""
