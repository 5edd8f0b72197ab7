"""The noise of vae-runtime in C. `vae_runtime` uses it where it is installed; its functions are not for others."""

__version__ = "0.1.0"
LIBRARY = "libvae_runtime.so"
"""The shared library beside this file, `runtime/c` of the repository."""
SUM = "libvae_runtime.sha256"
"""A file with the library's SHA-256: a damaged one would end the process that loads it."""
TABLE_SHA256 = "43fd00c422474ae1034c4abb7591abbeca5d0a63f1b591f1ea5b8e25eb66bc3c"
"""The hash of the table that the library was built with."""
