"""Encoders for `transformers`: a folder with their weights and the code that runs them, without this package."""
