"""Errors, files, locks, processes, draws, provenance: no knowledge of audio, video or models."""
