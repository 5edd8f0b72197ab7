"""The result of comparing graphs with PyTorch, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ParityError


@dataclass(frozen=True)
class TensorParity:
    """How one output of one graph differs from PyTorch's, at worst over all batches and sizes.

    `max_abs` is the largest difference from float64 PyTorch (from float32 if the model cannot run in float64). `worst`
    is its index, in a batch of `batch` rows whose dynamic axes had the `sizes`. `max_rel` is the largest difference
    relative to the value, which counts as at least a thousandth of the tensor's largest magnitude. For integer codes
    both are the share that differs.
    """

    component: str
    variant: str
    output: str
    max_abs: float
    max_rel: float
    from_float32: float
    batch: int
    sizes: str
    worst: tuple[int, ...]
    tolerance: float
    disagreeing: int
    compared: int

    @property
    def passed(self) -> bool:
        """Whether every value is within the tolerance."""
        return self.disagreeing == 0

    def __str__(self) -> str:
        return (
            f"{'ok' if self.passed else 'FAILED':8}{f'{self.component}/{self.variant} {self.output}':28}"
            f"max abs {self.max_abs:.2e}  max rel {self.max_rel:.2e}  tolerance {self.tolerance:.2e}  "
            f"from float32 {self.from_float32:.2e}  worst at {list(self.worst)} of batch {self.batch}"
            + (f", {self.sizes}" if self.sizes else "")
            + ("" if self.passed else f"; {self.disagreeing} of {self.compared} values disagree")
        )


@dataclass(frozen=True)
class ParityReport:
    """The result of a comparison of graphs with PyTorch. `str()` returns it as a table."""

    tensors: tuple[TensorParity, ...]

    @property
    def passed(self) -> bool:
        """Whether every tensor passed."""
        return all(tensor.passed for tensor in self.tensors)

    @property
    def max_abs(self) -> float:
        """The largest difference from float64 PyTorch of all tensors."""
        return max(tensor.max_abs for tensor in self.tensors)

    @property
    def max_rel(self) -> float:
        """The largest relative difference of all tensors."""
        return max(tensor.max_rel for tensor in self.tensors)

    def require(self) -> None:
        """Raise unless every tensor passed.

        Raises:
            ParityError: with a line for each tensor beyond its tolerance.
        """
        failed = [str(tensor) for tensor in self.tensors if not tensor.passed]
        if failed:
            raise ParityError("the exported graphs do not compute what PyTorch does:\n  " + "\n  ".join(failed))

    def __str__(self) -> str:
        return "\n".join(map(str, self.tensors))
