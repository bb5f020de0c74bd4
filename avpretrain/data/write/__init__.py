"""From source files to shards and a manifest."""
