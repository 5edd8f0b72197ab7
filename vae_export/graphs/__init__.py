"""Pure functions → graph files: ONNX, TorchScript, and variants in fewer bits."""
