"""Turn pure functions into graph files: ONNX, TorchScript, .pt2, and variants in fewer bits."""
