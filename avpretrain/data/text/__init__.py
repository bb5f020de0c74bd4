"""Text to packed token shards, and back: tokenizers, the shards, the order of windows."""
