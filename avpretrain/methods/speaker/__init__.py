"""Streaming active speaker detection: who is speaking, with bounded past and future."""
