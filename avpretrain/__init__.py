"""avpretrain: audio-visual pretraining with DiffMAViL, and proof of what it costs."""

__version__ = "0.1.0"
