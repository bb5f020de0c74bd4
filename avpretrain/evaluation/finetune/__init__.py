"""Encoder and classification head trained together."""
