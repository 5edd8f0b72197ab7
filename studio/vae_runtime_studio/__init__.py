"""The page to look at a bundle of vae-runtime: serve it on this machine, or lay it out as static files."""

from .serving import active, serve, site

__all__ = ["active", "serve", "site"]
