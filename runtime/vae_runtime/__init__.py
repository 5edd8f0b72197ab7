"""Sample, encode and decode exported Variational Autoencoders with numpy and ONNX Runtime."""

__version__ = "0.1.0"
