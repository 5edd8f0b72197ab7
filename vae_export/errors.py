"""The errors of the exporter and the training module, beside those of `vae_runtime.errors`.

    VaeError                 in vae_runtime.errors, with BundleError, InputError and DeviceError
    ├── ExportError          a model cannot be turned into graphs, or its bundle cannot be written
    │   ├── MissingCondition encode or decode takes more than it is given
    │   └── ParityError      a graph's numbers are not PyTorch's
    └── TrainingError        training cannot continue

An argument, a model or a data file that is not as expected is an InputError here too.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vae_runtime.errors import InputError, VaeError


class ExportError(VaeError):
    """The model cannot be turned into graphs, or the bundle cannot be written."""


class MissingCondition(ExportError):
    """A function takes more than it is given: most likely a condition.

    Args:
        function: its name.
        missing: the names of what it takes.
        advice: what to do.
        other: the names of the conditions that are given and that it does not take.
    """

    def __init__(self, function: str, missing: Sequence[str], advice: str, other: Sequence[str] = ()) -> None:
        super().__init__(f"{function}: also takes {', '.join(missing)}; {advice}")
        self.function, self.missing, self.other = function, missing, other


class ParityError(ExportError):
    """A graph's numbers are not PyTorch's."""


class TrainingError(VaeError):
    """Training cannot continue: the loss is not a number, or the run folder does not fit the configuration."""


def require_path(name: str, value: object) -> Path:
    """Return the value as a path.

    Raises:
        InputError: it is none.
    """
    try:
        path = Path(value)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"{name}: expected the path of a folder, got {type(value).__name__}") from None
    if "\0" in str(path):
        raise InputError(f"{name}: expected the path of a folder, got {str(path)!r:.99}; no name has a null character")
    return path
