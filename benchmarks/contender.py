"""A contender: one way to run a VAE. It opens graphs; the work on them is the same for all contenders."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Run = Callable[[Array], Any]
    Call = Callable[[], Any]

# Long enough to be no special case of any generator.
FIRST_SEED = 10**15 + 1


class Unavailable(Exception):
    """A contender cannot do the work here; the report prints the message as the reason."""


class Contender:
    """One way to run a VAE, with some number of threads.

    A subclass says what it is given and opens graphs; what is done with them is the same for all.
    """

    name = ""
    title = ""
    environment = "dev"
    """The environment that it runs in, one of environments.REQUIREMENTS."""
    converter = ""
    exact = True
    """Whether its numbers must be PyTorch's within the tolerance of float32; otherwise their PSNR counts."""
    packages: tuple[str, ...] = ()
    """The packages that it needs to run."""
    given = ""
    fixed = False
    """Whether a graph takes only one batch size."""
    precision = "f32"
    only: tuple[str, ...] = ()
    """The kinds of work that it is timed on; all of them by default."""

    def __init__(self, folder: str, threads: int, latent: tuple[int, ...]) -> None:
        """Prepare nothing yet.

        Args:
            folder: of the model, as benchmarks.models writes it.
            threads: that the contender may use.
            latent: shape of one latent.
        """
        self.folder = folder
        self.threads = threads
        self.latent = latent
        self._opened: dict[Any, Any] = {}

    @staticmethod
    def convert(folder: str, component: str, batches: list[int]) -> None:
        """Write what `open` reads; called in the environment `converter`."""

    def setup(self) -> None:
        """Settings of the process, before any graph is opened."""

    def check(self) -> None:
        """Raise Unavailable if the model's folder has no graphs for this contender."""

    def open(self, component: str, batch: int) -> Run:
        """A function from the component's input to its outputs: encoder → (mu, logvar), decoder → (mean,)."""
        raise NotImplementedError

    def path(self, file: str) -> str:
        """A file of the model's folder."""
        return os.path.join(self.folder, file)

    def function(self, component: str, batch: int) -> Run:
        """Return the function of `open`, opened once."""
        key = (component, batch if self.fixed else 0)
        if key not in self._opened:
            self._opened[key] = self.open(component, batch)
        opened: Run = self._opened[key]
        return opened

    def draw(self, batch: int, seed: int) -> Array:
        """Latents of a seed from the noise that the contender's users have at hand, float32 [batch, *latent]."""
        return np.random.default_rng(seed).standard_normal((batch, *self.latent), dtype=np.float32)

    def work(self, kind: str, batch: int, z: Any, x: Any) -> Call:
        """A function of no arguments that does one piece of work.

        Args:
            kind: decode, encode, reconstruct (through the posterior's mean), sample (a fresh seed for each call),
                next (the following samples of one seed), stream (of one generator that is kept), or noise.
            batch: of how many.
            z, x: float32 [batch, ...], what to decode and to encode.

        Raises:
            Unavailable: the contender has no such work.
        """
        if kind == "decode":
            decode = self.function("decoder", batch)
            return lambda: decode(z)[0]
        if kind == "encode":
            encode = self.function("encoder", batch)
            return lambda: encode(x)
        if kind == "reconstruct":
            encode, decode = self.function("encoder", batch), self.function("decoder", batch)
            return lambda: decode(encode(x)[0])[0]
        if kind == "sample":
            decode, draw, seed = self.function("decoder", batch), self.draw, FIRST_SEED

            def sample() -> Any:
                nonlocal seed
                seed += 1
                return decode(draw(batch, seed - 1))[0]

            return sample
        raise Unavailable(f"{self.title} has no {kind}")
