"""Score the rows of a file of any length in constant memory; after any interruption the same call goes on.

While scores are made, their parts lie in the folder OUT.parts beside the file to write; it is removed in the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import io
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import noise
from ._version import __version__
from .errors import InputError, VaeError, error_line
from .files import another_place, locked, make_folder, write_atomic
from .input_files import read_json
from .row_files import RowFile, conditions_of_rows
from .score import Scores, reasons_of, usual_seed
from .score_tables import Columns, table_writer, write_header
from .vae import VAE

Array = NDArray[Any]

# Rows of a part, and about how many numbers its observations have.
_ROWS, _NUMBERS = 2**16, 2**22
# Rows of the picture, the worst first.
_PICTURED = 8
_TERMS = "kl_per_dimension"


@dataclass(frozen=True)
class Request:
    """What to compute and what to write."""

    conditions: Mapping[str, Any] = field(default_factory=dict)
    """By the name of each condition, one value, or values for all rows."""
    k: int | None = None
    seed: int | None = None
    start: int = 0
    batch_size: int | None = None
    out: Path | None = None
    """The table of scores: .csv, .jsonl, .parquet, .npy, or .npz, which also has the KL of each latent dimension."""
    contributions: Path | None = None
    """An .npy file: float32 [rows of the table, *observation shape]."""
    picture: Path | None = None
    """A .png file: the rows with the lowest scores, each beside its reconstruction and its contributions."""
    threshold: float | None = None
    """Rows whose p-value is at most this are anomalies."""
    only_anomalies: bool = False
    """Write the anomalies alone."""


@dataclass
class Summary:
    """What was found: the mean and its standard error of each score, and the number of anomalies."""

    seed: int
    rows: int = 0
    anomalies: int = 0
    reason: str | None = None
    p_value_reason: str | None = None
    _moments: dict[str, tuple[float, float]] = field(default_factory=dict)

    def add(self, name: str, column: Array) -> None:
        """Take in the values of one score of further rows; `rows` are those before them."""
        n, m = self.rows, len(column)
        if not m:
            return
        with np.errstate(invalid="ignore", over="ignore"):
            mean, squares = self._moments.get(name, (0.0, 0.0))
            own = float(column.mean())
            away = own - mean if n else own
            squares += float(np.square(column - own).sum()) + (away**2 * n * m / (n + m) if n else 0.0)
            self._moments[name] = (mean + away * m / (n + m) if n else own), squares

    @property
    def means(self) -> dict[str, tuple[float, float]]:
        """The mean of each score over all rows, and its standard error."""
        n = self.rows
        return {
            name: (mean, math.sqrt(squares / max(1, n - 1) / n) if math.isfinite(squares) else squares)
            for name, (mean, squares) in self._moments.items()
        }


def score_rows(
    vae: VAE, file: RowFile, request: Request, progress: Callable[[int], object] | None = None
) -> Summary:  # fmt: skip
    """Score all rows of a file, and write what is asked for.

    Args:
        vae: the VAE.
        file: the rows.
        request: what to compute and to write; existing files are replaced.
        progress: called with the number of rows done after each part.

    Raises:
        InputError: a row or an argument is wrong; or no p-value can be at the threshold, and why.
        VaeError: a file cannot be written, pyarrow is missing, or parts of another call are there.
    """
    writer = table_writer(request.out) if request.out else None
    beside = request.out or request.contributions
    for each in (request.contributions, request.picture):
        if each is not None and not each.parent.is_dir():
            raise VaeError(f"{each}: cannot write here: no such folder; choose a folder that exists and is writable")
    with contextlib.ExitStack() as stack:
        seed = request.seed
        folder = None
        if beside is not None:
            folder = _make_parts(beside)
            stack.enter_context(_held(folder))
            seed = _earlier_seed(folder) if seed is None and not vae.manifest.scores else seed
        if seed is None:
            seed = usual_seed(vae.manifest)
        work = _Work(vae, file, request, seed, folder)
        try:
            summary, lowest = work.summarize(progress)
        except InputError:
            # Rows or conditions that are corrected make another call, which could not go on from these parts.
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        if writer is not None and request.out is not None:
            kinds, parts = work.table(npz=request.out.suffix == ".npz")
            n = summary.anomalies if request.only_anomalies else summary.rows
            out, write = request.out, writer
            write_atomic(out, lambda opened: write(opened, kinds, n, parts))
        if request.contributions is not None:
            work.write_contributions(request.contributions, summary)
        if request.picture is not None:
            write_atomic(request.picture, work.picture(lowest))
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
    return summary


def _make_parts(beside: Path) -> Path:
    """Make the folder of parts beside the file to write."""
    folder = beside.with_name(f"{beside.name}.parts")
    try:
        if not beside.parent.is_dir():
            raise FileNotFoundError(2, "no such folder", str(beside.parent))
        make_folder(folder)
    except OSError as error:
        raise VaeError(f"{beside}: cannot write here: {error_line(error)}; {another_place(error)}") from error
    return folder


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Let no other call use the folder of parts meanwhile; one without parts is removed in the end."""
    try:
        with locked(folder):
            try:
                yield
            finally:
                if not any(folder.glob("*.npy")):
                    shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        raise VaeError(f"{folder}: another call is at work here; wait for it, or write elsewhere") from None


def _earlier_seed(folder: Path) -> int | None:
    """The seed of the call whose parts are there."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        return int(read_json(folder / "call.json")["seed"])
    return None


class _Work:
    """The parts of one call: computed, or found as an earlier call left them."""

    def __init__(self, vae: VAE, file: RowFile, request: Request, seed: int, folder: Path | None) -> None:
        self.vae, self.file, self.request, self.seed, self.folder = vae, file, request, seed, folder
        numbers = math.prod(file.shape)
        self.size = max(1, min(_ROWS, _NUMBERS // max(1, numbers)))
        self.reasons = reasons_of(vae.manifest, vae.variants, request.k, seed)
        if request.threshold is not None and self.reasons[1] is not None:
            raise InputError(f"threshold: there are no p-values: {self.reasons[1]}")
        held_out = vae.manifest.scores
        if request.threshold is not None and held_out is not None and request.threshold < 1 / (held_out.n + 1):
            raise InputError(
                f"threshold: expected at least {1 / (held_out.n + 1):.3g}, below which no p-value is with {held_out.n} "
                f"held-out scores, got {request.threshold:g}; give a higher one, or calibrate with more observations"
            )
        if (request.contributions or request.picture) and self.reasons[0] is not None:
            what = "contributions" if request.contributions else "picture"
            raise InputError(f"{what}: expected a bundle with a likelihood: {self.reasons[0]}; leave it out")
        if folder is not None:
            self._claim(folder)

    def _claim(self, folder: Path) -> None:
        """Write down what the parts depend on, or see that the folder's parts are of the same call."""
        request = self.request
        hashed = hashlib.sha256()
        for name, value in sorted(request.conditions.items()):
            array = np.asarray(value)
            hashed.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
        call = {
            "bundle": self.vae.digest, "variants": self.vae.variants, "device": str(self.vae.device),
            "rows": self.file.stamp(), "conditions": hashed.hexdigest(), "k": request.k, "seed": self.seed,
            "start": request.start, "batch_size": request.batch_size, "part": self.size,
            "contributions": request.contributions is not None, "version": __version__,
        }  # fmt: skip
        path = folder / "call.json"
        if not path.exists():
            write_atomic(path, json.dumps(call, indent=2).encode())
            return
        try:
            earlier = read_json(path)
        except (OSError, ValueError):
            earlier = {}
        differing = [name for name in call if not isinstance(earlier, dict) or earlier.get(name) != call[name]]
        if differing:
            raise VaeError(
                f"{folder}: holds scores of an interrupted call with other {differing[0]}; repeat that call, or remove "
                "the folder"
            )

    def summarize(self, progress: Callable[[int], object] | None) -> tuple[Summary, list[int]]:
        """Make the parts that are missing; return the summary, and the rows with the lowest scores."""
        summary, lowest = Summary(self.seed), list[tuple[float, int]]()
        threshold = self.request.threshold
        for part in self.parts():
            scores = [name for name in part.dtype.names or () if part.dtype[name].shape == () and name != "row"]
            for name in scores:
                summary.add(name, part[name])
            if threshold is not None:
                summary.anomalies += int((part["p_value"] <= threshold).sum())
            if self.request.picture is not None:
                worst = self._worth(part)
                rows = zip((-worst).tolist(), (-(np.arange(len(part)) + summary.rows)).tolist(), strict=True)
                lowest = heapq.nlargest(_PICTURED, [*lowest, *rows])
            summary.rows += len(part)
            if progress is not None:
                progress(summary.rows)
        if not summary.rows:
            raise InputError(f"{self.file.path}: expected at least one row, got none")
        self._require_conditions(summary.rows)
        summary.reason, summary.p_value_reason = self.reasons
        return summary, [-row for _, row in lowest]

    def _worth(self, part: Array) -> Array:
        """What orders the rows: the score that p-values are of, or else the ELBO or the error."""
        held_out, names = self.vae.manifest.scores, part.dtype.names or ()
        kind = held_out.kind if held_out is not None and "p_value" in names else "elbo"
        column = part[kind] if kind in names else -part["mse"] if "mse" in names else np.zeros(len(part))
        return np.where(np.isnan(column), -np.inf, column)

    def parts(self) -> Iterator[Array]:
        """Give the scores of all rows, structured arrays of `size` rows, the last of fewer; compute what is missing."""
        number = 0
        if self.folder is not None:
            while (part := self._stored(number)) is not None:
                yield part
                number += 1
                if len(part) < self.size:
                    return
        for x in self.file.parts(self.size, number * self.size):
            part = self._scored(x, number * self.size)
            if self.folder is not None:
                content = io.BytesIO()
                np.save(content, part, allow_pickle=False)
                write_atomic(self._path(number), content.getvalue())
            yield part
            number += 1

    def _path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:08}.npy"

    def _stored(self, number: int) -> Array | None:
        """A part that an earlier call has written, or this one; None where there is none."""
        path = self._path(number)
        if not path.exists():
            return None
        with contextlib.suppress(OSError, ValueError):
            part: Array = np.lib.format.open_memmap(path, mode="r")
            return part
        return None

    def _scored(self, x: Array, first: int) -> Array:
        """Score rows from number `first` on."""
        request = self.request
        try:
            scores = self.vae.score(
                x, conditions=self._conditions(first, first + len(x)), k=request.k, seed=self.seed,
                start=noise.advance(request.start, first), batch_size=request.batch_size,
                contributions=request.contributions is not None,
            )  # fmt: skip
        except InputError as error:
            # Numbers in the message count the rows of this part.
            after = f" ({self.file.path} is read from row {first} on)" if first else ""
            raise InputError(f"{error}{after}") from None
        return _structured(scores, len(x))

    def _conditions(self, first: int, last: int) -> dict[str, Any] | None:
        """The conditions of some rows."""
        return conditions_of_rows(self.vae.conditions, self.request.conditions, first, last)

    def _require_conditions(self, n: int) -> None:
        """Refuse conditions of more rows than the file has; the VAE has refused those of fewer."""
        for name, value in (self._conditions(n, n + 1) or {}).items():
            whole = self.request.conditions[name]
            if value is not whole and len(value):
                raise InputError(
                    f"conditions[{name!r}]: expected one value, or {n} as the file has rows, got {len(whole)}; "
                    "give others"
                )

    def _chosen(self) -> Iterator[tuple[Array, Array]]:
        """The rows to write, part by part: their numbers and their scores."""
        first = 0
        for part in self.parts():
            numbers = np.arange(first, first + len(part))
            first += len(part)
            if self.request.only_anomalies:
                low = part["p_value"] <= (self.request.threshold or 0.0)
                numbers, part = numbers[low], part[low]
            yield numbers, part

    def table(self, *, npz: bool) -> tuple[dict[str, np.dtype[Any]], Callable[[], Iterator[Columns]]]:
        """The columns to write with their dtypes, and a function that goes through their parts."""
        whole = next(self.parts()).dtype
        names = [name for name in whole.names or () if whole[name].shape == () or (npz and name.endswith(_TERMS))]
        kinds = {"row": np.dtype(np.int64), **{name: whole[name] for name in names}}

        def parts() -> Iterator[Columns]:
            for numbers, part in self._chosen():
                yield {"row": numbers, **{name: part[name] for name in names}}

        return kinds, parts

    def write_contributions(self, path: Path, summary: Summary) -> None:
        """Write the contributions of the rows of the table."""
        n = summary.anomalies if self.request.only_anomalies else summary.rows

        def write(opened: Any) -> None:
            write_header(opened, np.dtype(np.float32), (n, *self.file.shape))
            for _, part in self._chosen():
                opened.write(np.ascontiguousarray(part["contributions"]).tobytes())

        write_atomic(path, write)

    def picture(self, lowest: Sequence[int]) -> bytes:
        """Lay out rows as pictures, a line each: the observation, its reconstruction, and where that fails."""
        from .image import grid, png

        x = self.file.rows(lowest, self.size).astype(np.float32)
        lines = []
        for number, row in zip(lowest, x, strict=True):
            conditions = self._conditions(number, number + 1)
            start = noise.advance(self.request.start, number)
            scores = self.vae.score(row[None], conditions=conditions, seed=self.seed, start=start, contributions=True)
            r = self.vae.reconstruct(row[None], conditions=conditions)
            if r.shape != x[:1].shape or scores.contributions is None:
                why = scores.reason or "the decoder's answer has another shape"
                raise InputError(f"picture: expected reconstructions that can be compared: {why}")
            lines.append((row, r[0], _loss(scores.contributions[0])))
        low, high = self.vae.manifest.observation.range or (float(x.min()), float(x.max()))
        shown = [[row, r, low + (high - low) * loss] for row, r, loss in lines]
        return png(grid(np.array(shown, np.float32).reshape(-1, *x.shape[1:]), columns=3, value_range=(low, high)))


def _loss(terms: Array) -> Array:
    """The loss of each value from 0 to 1, where 1 is the largest of the observation; of all channels together."""
    loss = terms.max() - terms
    if loss.ndim == 3:
        loss = np.broadcast_to(loss.sum(axis=0), loss.shape)
    greatest = loss.max()
    return loss / greatest if greatest > 0 and np.isfinite(greatest) else np.zeros_like(loss)


def _structured(scores: Scores, n: int) -> Array:
    """Scores as a structured array [n]."""
    columns: dict[str, Array] = {name: value for name, value in vars(scores).items() if getattr(value, "ndim", 0) == 1}
    terms = scores.kl_per_dimension
    if isinstance(terms, Mapping):
        columns |= {f"{latent}/{_TERMS}": each for latent, each in terms.items()}
    elif terms is not None:
        columns[_TERMS] = terms
    if scores.contributions is not None:
        columns["contributions"] = scores.contributions.astype(np.float32)
    part = np.empty(n, [(name, column.dtype, column.shape[1:]) for name, column in columns.items()])
    for name, column in columns.items():
        part[name] = column
    return part
