"""Time a bundle on this machine beside a plain ONNX Runtime session of the same graph."""

from __future__ import annotations

import os
import platform
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundle import Bundle, absence, open_bundle
from .devices import Device, resolve_device
from .errors import BundleError, InputError, VaeError, one_line, require_integer
from .golden import golden_inputs, read_golden
from .networks import open_session
from .timing import in_turns, quartiles, take_turn
from .vae import VAE, load
from .verification import verify

Array = NDArray[Any]
Call = Callable[[], Any]

WORK = ("decode", "sample", "encode", "reconstruct")
PLAIN = "plain"
# A contender's turn in a round; short, so that a busy machine hits all contenders of a round alike.
_SECONDS = 0.02


@dataclass(frozen=True)
class Timing:
    """The time of one piece of work by one contender."""

    work: str
    batch: int
    threads: int
    contender: str
    """`plain`, ONNX Runtime's session of the bundle's first variant; or a variant of the bundle, by `vae_runtime`."""
    seconds: tuple[float, ...]
    """The time of one call: the median of each round."""
    ratios: tuple[float, ...]
    """How many times as fast as `plain`, within each round."""
    difference: float | None
    """Largest difference from the answer of `plain` to the same input; None where each draws noise of its own."""


@dataclass(frozen=True)
class Benchmark:
    """The result of `bench`. `str()` of it is a table."""

    bundle: str
    digest: str
    processor: str
    processors: int
    load: tuple[float, float] | None
    """The load average of the last minute, before and after; None where unknown."""
    timings: tuple[Timing, ...]
    left_out: tuple[str, ...]
    """What was left out, and why, a line each."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        busy = f"load {self.load[0]:.1f} before, {self.load[1]:.1f} after" if self.load else "load unknown"
        contenders = list(dict.fromkeys(timing.contender for timing in self.timings))
        lines = [
            f"{self.bundle}  {self.digest}",
            f"{self.processor}, {self.processors} processors, {busy}",
            "Time of a call of a plain session; for each variant, how many times as fast it is, with the quartiles.",
            f"{'work':12}{'batch':>6}{'threads':>8}" + "".join(f"{name:>24}" for name in contenders),
        ]
        rows: dict[tuple[str, int, int], dict[str, Timing]] = {}
        for timing in self.timings:
            rows.setdefault((timing.work, timing.batch, timing.threads), {})[timing.contender] = timing
        for (work, batch, threads), row in rows.items():
            cells = [_cell(row[name]) if name in row else "–" for name in contenders]
            lines.append(f"{work:12}{batch:6}{threads:8}" + "".join(f"{cell:>24}" for cell in cells))
        return "\n".join(map(one_line, [*lines, *self.left_out]))


def bench(
    path: str | os.PathLike[str],
    *,
    variants: Sequence[str] | None = None,
    batches: Sequence[int] = (1, 8, 64),
    threads: Sequence[int] = (1,),
    work: Sequence[str] = WORK,
    rounds: int = 9,
    device: str = "cpu",
    digest: str | None = None,
) -> Benchmark:
    """Time a bundle's variants beside a plain ONNX Runtime session of its first one.

    Variants that do not verify on this machine are left out. In each round every contender does the same work for some
    milliseconds, in random order, so that other load on the machine disturbs the ratios within a round little. The
    inputs are those of the golden vectors, repeated. Each call of sample takes a fresh seed, and the plain session's
    noise comes from `numpy.random.default_rng(seed)`.

    Args:
        path: the bundle's folder.
        variants: which to time; by default, all that ONNX Runtime runs.
        batches: how many at once, each at least 1.
        threads: threads of a call, each at least 1.
        work: some of "decode", "sample", "encode" and "reconstruct".
        rounds: the number of rounds, at least 1.
        device: as in `load`.
        digest: as in `load`.

    Raises:
        BundleError: the bundle is missing or damaged, its first variant does not verify, or it lacks a variant.
        DeviceError: the device is unavailable.
        InputError: an argument has the wrong form.
        VaeError: a graph failed, a variant's answer has another shape than the plain session's, or the bundle can do
            none of the work.
    """
    for name, values, high in (("batches", batches, 2**31), ("threads", threads, 1024)):
        if not len(values):
            raise InputError(f"{name}: expected at least one number, got none")
        for value in values:
            require_integer(name, value, 1, high)
    unknown = [each for each in work if each not in WORK]
    if unknown or not work:
        raise InputError(f"work: expected some of {', '.join(WORK)}, got {unknown[0] if unknown else 'none'}")
    require_integer("rounds", rounds, 1, 10**6)
    bundle = open_bundle(path, digest)
    available = list(dict.fromkeys(each.name for each in bundle.manifest.variants if each.executor == "ort"))
    chosen = list(variants) if variants is not None else available
    for name in chosen:
        if name not in available:
            raise BundleError(f"{path}: there is no variant {name!r}; choose one of: {', '.join(available)}")
    left_out: list[str] = []
    for name, why in _failures(bundle, device).items():
        if name in chosen:
            chosen.remove(name)
            left_out.append(f"{name} was left out: {why}")
    before = _load_average()
    order = random.Random(0)
    timings: list[Timing] = []
    for count in threads:
        vaes = {name: load(path, device=device, threads=count, variant=name, digest=bundle.digest) for name in chosen}
        plain = _Plain(bundle, resolve_device(device), count)
        for each in work:
            reason = plain.refuses(each)
            if reason:
                left_out.append(f"{each} was left out: {reason}")
                continue
            for batch in batches:
                timings += _timed(plain, vaes, each, batch, count, rounds, order, left_out)
    if not timings:
        raise VaeError(f"{path}: nothing could be timed; {'; '.join(dict.fromkeys(left_out))}")
    after = _load_average()
    load_average = None if before is None or after is None else (before, after)
    return Benchmark(
        str(path), bundle.digest, processor_name(), os.cpu_count() or 1, load_average, tuple(timings),
        tuple(dict.fromkeys(left_out)),
    )  # fmt: skip


def _failures(bundle: Bundle, device: str) -> dict[str, str]:
    """Return why variants do not verify, by their names: the speed of wrong numbers means nothing."""
    failures: dict[str, str] = {}
    for check in verify(bundle.path, device=device, digest=bundle.digest).checks:
        if check.passed is not False:
            continue
        component, _, name = check.what.partition(" ")[0].partition("/")
        if not name or name == bundle.variant(component).name:
            raise BundleError(f"{bundle.path}: {check.what}: {check.detail}; run vae-runtime verify")
        failures.setdefault(name, f"{check.what} does not verify: {check.detail}")
    return failures


def _timed(
    plain: _Plain,
    vaes: Mapping[str, VAE],
    work: str,
    batch: int,
    threads: int,
    rounds: int,
    order: random.Random,
    left_out: list[str],
) -> Iterator[Timing]:
    calls: dict[str, Call] = {}
    differences: dict[str, float | None] = {}
    for name, vae in vaes.items():
        call = plain.ours(vae, work, batch)
        try:
            # First, since loading with this package checks the bundle's files.
            answer = call()
        except VaeError as error:
            left_out.append(f"{work} in {name} was left out: {error}")
            continue
        if not calls:
            calls[PLAIN] = plain.call(work, batch)
            expected = calls[PLAIN]()
        calls[name] = call
        got = _first(answer)
        if got.shape != expected.shape:
            raise VaeError(
                f"{plain.bundle.path}: {work} in {name}: expected {list(expected.shape)} as from the plain session, "
                f"got {list(got.shape)}; export the bundle again"
            )
        differences[name] = None if work == "sample" else float(np.abs(got.astype(np.float64) - expected).max())
    taken = in_turns(calls, rounds, lambda name: take_turn(calls[name], _SECONDS).median, order)
    for name, seconds in taken.items():
        ratios = tuple(base / own for base, own in zip(taken[PLAIN], seconds, strict=True))
        yield Timing(work, batch, threads, name, tuple(seconds), ratios, differences.get(name))


def _first(answer: Any) -> Array:
    """Return the array of an answer that is compared: the observations, or the first latent's mean."""
    if isinstance(answer, np.ndarray):
        return answer
    parts = list(answer.values()) if isinstance(answer, Mapping) else [answer]
    return np.asarray(parts[0].mode())


class _Plain:
    """Sessions of a bundle's first graphs, run as in ONNX Runtime's documentation, and the inputs of all contenders."""

    def __init__(self, bundle: Bundle, device: Device, threads: int) -> None:
        self.bundle = bundle
        self._device = device
        self._threads = threads
        golden = read_golden(bundle)
        self._inputs = {name: golden_inputs(bundle, name, golden) for name in bundle.manifest.components}
        self._sessions: dict[str, Any] = {}

    def refuses(self, work: str) -> str | None:
        """Return why a plain session cannot do the work, or None where it can."""
        manifest = self.bundle.manifest
        needed = {"decode": ("decoder",), "sample": ("decoder",), "encode": ("encoder",)}
        for component in needed.get(work, ("encoder", "decoder")):
            if component not in manifest.components:
                return absence(manifest, component).partition("; ")[0]
        if work == "sample" and any(latent.prior.kind != "normal" for latent in manifest.latents):
            return "a plain session draws noise for a standard normal prior only, and the bundle has another prior"
        if work == "reconstruct" and len(manifest.latents) > 1:
            return "several latents take more than two sessions"
        return None

    def _rows(self, component: str, batch: int) -> dict[str, Array]:
        inputs = self._inputs[component]
        return {name: np.resize(value, (batch, *value.shape[1:])) for name, value in inputs.items()}

    def ours(self, vae: VAE, work: str, batch: int) -> Call:
        """Return a call of the work by the public API."""
        manifest = vae.manifest
        conditions = {
            condition.name: self._rows(component, batch)[condition.name]
            for condition in manifest.conditions
            for component in condition.components
            if component in manifest.components
        }
        # As a user writes it: no `conditions` where there are none.
        arguments: dict[str, Any] = {"conditions": conditions} if conditions else {}
        if work == "sample":
            seeds = iter(range(10**15, 2 * 10**15))
            return lambda: vae.sample(batch, seed=next(seeds), **arguments)
        if work == "decode":
            rows = self._rows("decoder", batch)
            names = [latent.name for latent in manifest.latents]
            z: Any = {name: rows[name] for name in names} if len(names) > 1 else rows[names[0]]
            return lambda: vae.decode(z, **arguments)
        x = self._rows("encoder", batch)[manifest.observation.name]
        if work == "encode":
            return lambda: vae.encode(x, **arguments)
        return lambda: vae.reconstruct(x, **arguments)

    def call(self, work: str, batch: int) -> Call:
        """Return a call of the same work by `session.run`."""
        manifest = self.bundle.manifest
        mean = [manifest.likelihood.mean]
        if work in ("decode", "sample"):
            decoder, rows = self._open("decoder"), self._rows("decoder", batch)
            if work == "decode":
                return lambda: decoder.run(mean, rows)[0]
            seeds = iter(range(10**15, 2 * 10**15))
            drawn = {latent.name: rows[latent.name].shape for latent in manifest.latents}

            def sample() -> Array:
                generator = np.random.default_rng(next(seeds))
                noise = {name: generator.standard_normal(shape, dtype=np.float32) for name, shape in drawn.items()}
                answer: Array = decoder.run(mean, {**rows, **noise})[0]
                return answer

            return sample
        encoder, inputs = self._open("encoder"), self._rows("encoder", batch)
        if work == "encode":
            outputs = [tensor.name for tensor in manifest.outputs("encoder")]
            return lambda: encoder.run(outputs, inputs)[0]
        decoder, rows = self._open("decoder"), self._rows("decoder", batch)
        latent = manifest.latent
        mode = [latent.posterior.mu or latent.posterior.value]
        return lambda: decoder.run(mean, {**rows, latent.name: encoder.run(mode, inputs)[0]})[0]

    def _open(self, component: str) -> Any:
        if component not in self._sessions:
            session = open_session(self.bundle, component, None, self._device, self._threads)
            # ONNX Runtime's own session, beneath what this package puts around it; a batch of one needs the loop.
            in_rows = component in self.bundle.manifest.batch_of_one
            self._sessions[component] = session if in_rows else session.raw
        return self._sessions[component]


def _cell(timing: Timing) -> str:
    if timing.contender == PLAIN:
        median = float(np.median(timing.seconds))
        return f"{1e6 * median:.1f} µs" if median < 1e-3 else f"{1e3 * median:.2f} ms"
    ratio = quartiles(timing.ratios)
    return f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})" if ratio else "–"


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def processor_name() -> str:
    """Return the name of this machine's processor, or of its architecture."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
