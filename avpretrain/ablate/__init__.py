"""Matrices of runs: read, run as processes, summarised."""
