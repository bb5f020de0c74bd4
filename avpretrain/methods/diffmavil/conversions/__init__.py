"""Other projects' weights read into this model, and this model as ONNX."""
