"""Graphs held against PyTorch."""
