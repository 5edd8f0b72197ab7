"""The exceptions this package raises on purpose.

Every message says what was expected, what was got and what to do next, and starts with the place: a file, a field,
a tensor or an index.
"""

from __future__ import annotations


class VaeError(Exception):
    """The base of every error raised on purpose by vae-runtime and vae-export."""


class BundleError(VaeError):
    """A bundle is missing, damaged, altered, or of a format this version does not read."""


class InputError(VaeError, ValueError):
    """An argument, an array or a data file is not what was asked for."""


class DeviceError(VaeError):
    """The device, execution provider or ONNX Runtime asked for is not there."""
