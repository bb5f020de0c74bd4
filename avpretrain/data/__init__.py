"""From files of any kind to batches."""
