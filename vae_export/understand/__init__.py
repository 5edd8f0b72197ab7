"""Any VAE → two pure functions, encode and decode, and what their tensors mean."""
