"""Lists of evaluations of one checkpoint."""
