"""FLOPs and memory of a step, without running it."""
