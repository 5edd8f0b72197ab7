"""The native core, where the extra `native` is installed: noise and conversion in C, with the same bits."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ._version import __version__
from .errors import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Normal numbers of seed 1, samples 2**64 - 1 and 0, stream 3, truncated at 2: the bytes of two rows of five.
_KNOWN = "5841adbfc8fb4e3fd0d708bf38bc8dbf5055b23e407954be1c4b94bfc0be4e3e804ccb3dc06dbcbf"


class Core:
    """The functions of the shared library: each fills an array as `noise` does, whose checks have passed."""

    def __init__(self, path: str) -> None:
        """Load the library.

        Raises:
            OSError: it cannot be loaded.
            AttributeError: a function is missing.
        """
        import ctypes

        library = ctypes.CDLL(path)
        u64, size, u32, pointer = ctypes.c_uint64, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_void_p
        self._byref: Any = ctypes.byref
        self._buffer: Any = ctypes.c_char.from_buffer
        self._functions: dict[str, Any] = {}
        for name, further in (("words", []), ("uniform", []), ("normal", [ctypes.c_double])):
            function = getattr(library, f"vae_noise_{name}")
            function.argtypes = [u64, u64, size, size, u32, *further, pointer]
            self._functions[name] = function
        self._to_uint8: Any = library.vae_to_uint8
        self._to_uint8.argtypes = [pointer, size, ctypes.c_float, ctypes.c_float, pointer]

    def draw(self, name: str, seed: int, start: int, stream: int, out: NDArray[Any], *truncation: float) -> None:
        """Fill `out`, C-contiguous, [n, elements], with samples `start` and following.

        Args:
            name: "words" (uint32), "uniform" or "normal" (float32).
            seed: 0 … 2**64 - 1.
            start: 0 … 2**64 - 1.
            stream: 0 … 2**32 - 1.
            out: the array, not empty.
            truncation: of "normal" alone; 0 for none.
        """
        # A third of the time that numpy takes for a pointer.
        pointer = self._byref(self._buffer(out))
        status = self._functions[name](seed, start, *out.shape, stream, *truncation, pointer)
        assert status == 0, f"vae-runtime-native refused {name}"

    def to_uint8(self, x: NDArray[Any], low: float, scale: float, out: NDArray[Any]) -> bool:
        """Fill `out` with (x - low) · scale, rounded half to even, at least 0 and at most 255.

        Args:
            x: float32, C-contiguous, not empty.
            low: a float32 number, as `scale` is.
            scale: what the differences are multiplied by.
            out: uint8, C-contiguous, of as many elements.

        Returns:
            Whether all numbers of `x` are finite.
        """
        of, to = self._byref(self._buffer(x)), self._byref(self._buffer(out))
        return bool(self._to_uint8(of, x.size, low, scale, to) == 0)


def load(table_sha256: str) -> Core | None:
    """Return the native core, or None where it is not installed, or the variable VAE_RUNTIME_NATIVE is 0.

    One that does not fit is warned of in the log (logger `vae_runtime`), and is not used: one that is damaged, of
    another version or table, or with another answer to a known question.

    Args:
        table_sha256: the hash of the noise's table.
    """
    if os.environ.get("VAE_RUNTIME_NATIVE") == "0":
        return None
    try:
        import vae_runtime_native as package

        if (package.__version__, package.TABLE_SHA256) != (__version__, table_sha256):
            raise ValueError(f"expected version {__version__} with its table, got version {package.__version__}")
        folder = os.path.dirname(package.__file__)
        path = os.path.join(folder, package.LIBRARY)
        with open(path, "rb") as file, open(os.path.join(folder, package.SUM), encoding="ascii") as expected:
            if hashlib.sha256(file.read()).hexdigest() != expected.read():
                raise ValueError(f"{path}: expected the SHA-256 of its package, got another")
        core = Core(path)
        known = np.empty((2, 5), np.float32)
        core.draw("normal", 1, 2**64 - 1, 3, known, 2.0)
        if known.tobytes().hex() != _KNOWN:
            raise ValueError("expected its known answer, got another")
    except ImportError:
        return None
    except (OSError, ValueError, AttributeError, SyntaxError) as error:
        import logging  # not needed on the start-up path

        logging.getLogger("vae_runtime").warning(
            "vae-runtime-native: %s; noise is drawn in Python; install vae-runtime[native] again", one_line(str(error))
        )
        return None
    return core
