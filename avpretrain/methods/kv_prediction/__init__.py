"""KV prediction (Horton et al. 2024): a small model reads the prompt, a large one answers from a predicted cache."""
