"""OpenELM (Mehta et al. 2024): a decoder-only language model with layer-wise scaling."""
