"""Metrics, intervals, and results read from disk: shared by evaluation, previews and report."""
