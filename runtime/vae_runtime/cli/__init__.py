"""The command `vae-runtime`."""
