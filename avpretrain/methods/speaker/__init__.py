"""Active speaker detection on streams (arXiv 2409.09018): per-frame encoders, fusion over a bounded past and future."""
