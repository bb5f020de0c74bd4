"""From files of any kind to batches: decode, shards, order of samples, reading, features."""
