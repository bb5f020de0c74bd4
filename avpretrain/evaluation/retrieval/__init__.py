"""Audio by video and video by audio, without training."""
