"""The stream of a decoder's variant, as a manifest describes it: a graph for chunks of latents, and its states."""

from __future__ import annotations

from .fields import TEXT, Integer, List, Number, Struct, Text
from .records import Record, field, record

_SIZE = Integer(1, 2**31 - 1)


@record(frozen=True)
class State(Record):
    """A state of a stream, float32 [batch, *shape]: zeros at first, then what the chunk before left of it."""

    name: str = field(Text("[A-Za-z_][A-Za-z0-9_.]*", "a tensor name of letters, digits, '_' and '.'"))
    shape: tuple[int, ...] = field(List(_SIZE, "a list of 1 to 8 sizes", min=1, max=8))

    @property
    def next(self) -> str:
        """The name of the output that is the state for the next chunk."""
        return f"{self.name}.next"


@record(frozen=True)
class Stream(Record):
    """How a decoder's variant takes latents in chunks along their dynamic axis, or the `reason` why it does not.

    The graph in `file`, beside the variant's own, gives `hop` values of the observation for each of the latent. `error`
    is the largest difference from the undivided answer that the export found.
    """

    file: str | None = field(Text("[A-Za-z0-9_-][A-Za-z0-9._-]*", "a file name"), default=None)
    hop: int | None = field(_SIZE, default=None)
    error: float | None = field(Number("a number of at least 0", min=0), default=None)
    states: tuple[State, ...] = field(
        List(Struct(State, name="state"), "a list of at most 1024 states", max=1024), default=()
    )
    reason: str | None = field(TEXT, default=None)


STREAM = Struct(Stream, name="stream")
