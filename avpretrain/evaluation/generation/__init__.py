"""What the decoders make of hidden patches."""
