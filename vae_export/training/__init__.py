"""Data and a configuration → a trained checkpoint."""
