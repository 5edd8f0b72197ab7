"""Few rows of a plain VAE, with as little around the graphs as can be; the numbers are those of the general way.

Where a call takes some 50 µs, checks in Python and ONNX Runtime's own wrapper are a third of it. A VAE is plain if it
has one latent of fixed shape, takes no conditions, and runs on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from . import noise
from .manifest import Manifest
from .session import Call, Session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

__all__ = ["Quick", "is_plain"]

_FLOAT32 = np.dtype(np.float32)
# Rows of a call: more are worked on in batches, where all this matters less.
_ROWS = 64
# Bytes of the observations of a call at most: calls are kept with their arrays, and large ones gain nothing.
_MOST_BYTES = 2**18
# Bytes of a result up to which copying it is cheaper than binding a new array.
_COPIED = 2**15
# Shapes for which calls are kept.
_SHAPES = 16
# Rows of noise drawn ahead for calls that take one index of a seed after the other, and numbers at most.
_AHEAD, _MOST_AHEAD = 128, 2**14


def is_plain(manifest: Manifest) -> bool:
    """Whether a VAE is one for `Quick`, wherever it runs."""
    (latent, *others), observation = manifest.latents, manifest.observation
    fixed = not latent.dynamic and not observation.dynamic
    codes = latent.posterior.kind == "codes"
    return fixed and not (others or codes or manifest.conditions or latent.posterior.noise)


class Quick:
    """The quick way of a plain VAE; may be shared by threads.

    Each method gives None where the general way has to answer, or to say what is wrong with the arguments.
    """

    def __init__(self, manifest: Manifest, session: Callable[[str], Session]) -> None:
        """Take a manifest that `is_plain` and what gives the session of a component."""
        self._session = session
        latent, observation = manifest.latents[0], manifest.observation
        self._latent, self._observation = latent.shape, observation.shape
        self._z, self._x = latent.name, observation.name
        self._mean = manifest.outputs("decoder")[0]
        posterior = latent.posterior
        self._mode = posterior.mu or posterior.value
        self._moments = [str(name) for name in (posterior.mu, posterior.std, posterior.logvar)]
        self._is_normal = posterior.kind == "normal"
        greatest = float(np.finfo(np.float32).max)
        self._low, self._high = observation.range or (-greatest, greatest)
        # Of floats that are not negative the bits are in the same order; of all others they are greater.
        self._bits = int(np.float32(self._high).view(np.uint32)) if self._low == 0 < self._high else None
        self._most_rows = _MOST_BYTES // (4 * max(1, math.prod(observation.shape), math.prod(latent.shape)))
        self._float = observation.dtype == "float32"
        self._normal = latent.prior.kind == "normal"
        # Calls that no thread is using, by the shape of what they take.
        self._decodes: dict[tuple[int, ...], list[Call]] = {}
        self._encodes: dict[tuple[int, ...], list[Call]] = {}
        self._reconstructions: dict[tuple[int, ...], list[tuple[Call, Call]]] = {}
        # Seed and index of the first of the rows drawn ahead; seed and index that would follow on the last call's.
        self._ahead: tuple[int, int, Array] = (0, 0, np.empty((0, *latent.shape), np.float32))
        self._next: tuple[int, int] | None = None

    def decode(self, z: Any) -> Array | None:
        """The mean for latents, float32 [n, *latent shape]."""
        if type(z) is not np.ndarray or z.dtype is not _FLOAT32:
            return None
        calls = self._decodes.get(z.shape)
        if calls is None:
            calls = self._new(self._decodes, z.shape, self._latent)
            if calls is None:
                return None
        # Of finite numbers only those that overflow have no finite sum of squares, and the general way takes these.
        squares = float(np.vdot(z, z))
        if squares - squares != 0:
            return None
        return self._decode(calls, z)

    def sample(self, n: int, seed: int, start: int) -> Array | None:
        """The means for latents drawn from a normal prior."""
        if not self._normal or type(seed) is not int or type(start) is not int or type(n) is not int:
            return None
        shape = (n, *self._latent)
        calls = self._decodes.get(shape)
        if calls is None:
            calls = self._new(self._decodes, shape, self._latent)
            if calls is None:
                return None
        return self._decode(calls, self._draw(seed, start, n))

    def encode(self, x: Any) -> tuple[Array, Array, Array] | None:
        """Mean, std and logvar of the posteriors of observations, float32 [n, *latent shape] each."""
        calls = self._taking(self._encodes, x) if self._is_normal else None
        if calls is None:
            return None
        try:
            call = calls.pop()
        except IndexError:
            moments = [(name, np.empty((len(x), *self._latent), np.float32)) for name in self._moments]
            call = Call(self._session("encoder"), (self._x, np.empty(x.shape, np.float32)), *moments)
        call.feed[...] = x
        call.run()
        mean, (std, logvar) = call.result.copy(), call.others
        found = mean, std.copy(), logvar.copy()
        calls.append(call)
        return found

    def reconstruct(self, x: Any) -> Array | None:
        """The means for the modes of the posteriors of observations, float32 [n, *observation shape]."""
        calls = self._taking(self._reconstructions, x)
        if calls is None:
            return None
        try:
            encode, decode = calls.pop()
        except IndexError:
            encode, decode = self._both(len(x))
        encode.feed[...] = x
        encode.run()
        squares = float(np.vdot(encode.result, encode.result))
        # Latents that are not finite are for the general way to refuse.
        found = None if squares - squares != 0 else self._result(decode)
        calls.append((encode, decode))
        return found

    def _decode(self, calls: list[Call], z: Array) -> Array:
        try:
            call = calls.pop()
        except IndexError:
            call = self._decoding(np.empty(z.shape, np.float32))
        call.feed[...] = z
        found = self._result(call)
        calls.append(call)
        return found

    def _result(self, call: Call) -> Array:
        if call.result.nbytes <= _COPIED:
            call.run()
            return call.result.copy()
        call.bind(np.empty(call.result.shape, np.float32))
        call.run()
        return call.result

    def _decoding(self, z: Array) -> Call:
        result = np.empty((len(z), *self._mean.shape), np.float32)
        return Call(self._session("decoder"), (self._z, z), (self._mean.name, result))

    def _both(self, n: int) -> tuple[Call, Call]:
        """An encoder's call, and a decoder's that takes its result where it lies."""
        x, z = np.empty((n, *self._observation), np.float32), np.empty((n, *self._latent), np.float32)
        return Call(self._session("encoder"), (self._x, x), (str(self._mode), z)), self._decoding(z)

    def _taking(self, pool: dict[tuple[int, ...], list[Any]], x: Any) -> Any:
        """The list in the pool for calls that take observations; None where they are not the quick way's, or wrong."""
        if type(x) is not np.ndarray or x.dtype is not _FLOAT32 or not self._float:
            return None
        calls = pool.get(x.shape)
        if calls is None:
            calls = self._new(pool, x.shape, self._observation)
            if calls is None:
                return None
        if self._bits is not None:
            if np.maximum.reduce(x.view(np.uint32), axis=None) > self._bits:
                return None
        # Both are NaN where any number is, and no comparison holds.
        elif not (np.minimum.reduce(x, axis=None) >= self._low and np.maximum.reduce(x, axis=None) <= self._high):
            return None
        return calls

    def _new(self, pool: dict[tuple[int, ...], list[Any]], shape: tuple[int, ...], one: tuple[int, ...]) -> Any:
        """A list in the pool for calls of a shape; None where it is not the quick way's."""
        if shape[1:] != one or not 1 <= shape[0] <= min(_ROWS, self._most_rows):
            return None
        if len(pool) >= _SHAPES:
            pool.clear()
        return pool.setdefault(shape, [])

    def _draw(self, seed: int, start: int, n: int) -> Array:
        """Noise of the prior; where calls take one index of a seed after the other, many rows at once."""
        of, first, rows = self._ahead
        offset = start - first
        # Rows drawn ahead go on at 0 after the last index, 2**64 - 1, beyond which no call may begin.
        if of == seed and offset >= 0 and offset + n <= len(rows) and start < 2**64:
            return rows[offset : offset + n]
        following = self._next == (seed, start) or (of == seed and offset == len(rows) > 0)
        self._next = (seed, start + n)
        most = min(_AHEAD, _MOST_AHEAD // max(1, math.prod(self._latent)))
        if following and n < most:
            rows = noise.normal(seed, start, most, self._latent, noise.PRIOR)
            self._ahead = (seed, start, rows)
            return rows[:n]
        return noise.normal(seed, start, n, self._latent, noise.PRIOR)
