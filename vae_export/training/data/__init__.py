"""Observations of any source and size, as rows that are addressed by number."""
