"""The bundle's manifest: its fields as dataclasses, read and checked with the standard library, and written.

docs/bundle-format.md is the specification, docs/bundle-format.schema.json its JSON Schema. The outer document is ONNX
Runtime's model package manifest; everything of ours lives under `additional_metadata.vae` of the package and of each
variant. Reading reports every problem at once, each with its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field
from typing import Any

from .errors import BundleError
from .records import Record, record

__all__ = [
    "EXECUTORS",
    "FORMAT_VERSION",
    "KNOWN_FIELDS",
    "Condition",
    "Golden",
    "Latent",
    "LatentPosterior",
    "LatentPrior",
    "Likelihood",
    "Manifest",
    "Normalisation",
    "Observation",
    "Output",
    "Problem",
    "Quality",
    "Refusal",
    "Signature",
    "Sizes",
    "TensorSpec",
    "Variant",
    "dump",
    "parse",
    "problems",
]

FORMAT_VERSION = "2.0"
COMPONENTS = ("encoder", "decoder")
# Those a VAE can be trained with; a bundle may also say "none".
LIKELIHOODS = ("bernoulli", "gaussian", "laplace")
# Whose payload under `executor_info` a variant carries: ONNX Runtime, torch.jit.load, torch.export.load.
EXECUTORS = ("ort", "torchscript", "torch_export")

# Every field of this format version, as `must_understand` names it.
KNOWN_FIELDS = frozenset(
    ["format_version", "must_understand", "reader", "name", "description", "license", "observation", "conditions"]
    + ["latents", "likelihood", "noise", "golden", "refused", "training", "metrics", "producer", "packed_from"]
    + [f"observation.{name}" for name in ("name", "dtype", "shape", "axes", "dynamic", "range", "normalisation")]
    + [f"conditions.{name}" for name in ("name", "dtype", "shape", "classes", "range", "components")]
    + [f"latents.{name}" for name in ("name", "dtype", "shape", "axes", "dynamic", "scale", "shift")]
    + [f"latents.{name}" for name in ("prior", "posterior")]
    + [f"likelihood.{name}" for name in ("kind", "mean", "logits", "scale", "scale_output", "shape", "axes")]
    + [f"likelihood.{name}" for name in ("outputs", "reason")]
    + [f"golden.{name}" for name in ("file", "seed", "n")]
    + [f"refused.{name}" for name in ("component", "variant", "reason")]
)

_SEGMENT = "[A-Za-z0-9_-][A-Za-z0-9._-]*"
_NAME = re.compile(_SEGMENT)
_PATH = re.compile(f"{_SEGMENT}(/{_SEGMENT})*")
_TENSOR = re.compile("[A-Za-z_][A-Za-z0-9_.]*")
# One line of text, the name of a class: no control characters, no line or paragraph separators.
_LINE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+")
_SCHEMA_VERSION = re.compile(r"1\.(0|[1-9][0-9]*)")
_VERSION = re.compile(r"2\.(0|[1-9][0-9]*)")
_OLDER = re.compile(r"1\.(0|[1-9][0-9]*)")
_NEWER = re.compile(r"([3-9]|[1-9][0-9]+)\.(0|[1-9][0-9]*)")
_DIGEST = re.compile("sha256:[0-9a-f]{64}")
# What errors tell people to install comes out of a file, so it can name nothing but this package.
_READER = re.compile(r"vae-runtime>=[0-9]+(\.[0-9]+)*")
# The golden vectors' name for PyTorch's answers.
_RESERVED = "pytorch"


@record(frozen=True)
class Problem(Record):
    """One thing wrong with a manifest: where, what was expected, what was got."""

    place: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.place}: {self.expected} is expected, got {self.got}"


@record(frozen=True)
class Sizes(Record):
    """The sizes of a dynamic axis that were proven: the multiples of `multiple` from `min` to `max`."""

    min: int
    max: int
    multiple: int = 1

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max and size % self.multiple == 0

    def __str__(self) -> str:
        return f"{self.min} … {self.max}" + (f" in steps of {self.multiple}" if self.multiple > 1 else "")


@record(frozen=True)
class TensorSpec(Record):
    """One input or output of a graph, without its batch axis, which is axis 0 and always dynamic.

    `shape` is the usual shape, the one of the golden vectors; `dynamic` holds the axes of it, by number from 0, that
    may have other sizes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    dynamic: frozenset[int] = frozenset()


@record(frozen=True)
class Normalisation(Record):
    """How raw data become observations: x = (raw - offset) / divisor."""

    offset: float
    divisor: float


@record(frozen=True)
class Observation(Record):
    """One observation x as the encoder takes it: [batch, *shape], float32 or int64.

    `range` bounds its values, None where any finite number will do; `axes` names those of `shape`; `dynamic` holds, by
    name, the axes that may have other sizes than `shape` says.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    range: tuple[float, float] | None = None
    normalisation: Normalisation | None = None
    dtype: str = "float32"
    dynamic: Mapping[str, Sizes] = field(default_factory=dict)


@record(frozen=True)
class Condition(Record):
    """What encoder, decoder or both are given beside x or z: [batch, *shape], float32 or int64.

    `classes` names the values 0, 1, … of an int64 condition of shape (); `range` bounds the values of any other.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    classes: tuple[str, ...] | None = None
    range: tuple[float, float] | None = None
    components: tuple[str, ...] = COMPONENTS


@record(frozen=True)
class LatentPrior(Record):
    """p(z): "normal", the standard normal; "mixture", fitted to the posterior means of real data; "sphere", uniform on
    the unit sphere; "none", where `reason` says why there is none to sample from.

    A mixture has `components` normal distributions, whose parameters stand in the file `file`, with a `covariance`
    that is "diagonal" or "full".
    """

    kind: str = "normal"
    file: str | None = None
    components: int | None = None
    covariance: str | None = None
    reason: str | None = None


@record(frozen=True)
class LatentPosterior(Record):
    """q(z|x). "normal": diagonal, its parameters the encoder's outputs `mu`, `logvar` and `std`. "codes": the encoder's
    output `value` holds integers below `codebook`. "none": the encoder's output `value` is the latent, and `reason`
    says why there is no distribution; without `value`, the latent is noise that the decoder takes and nothing infers.

    `noise` names the encoder's input for this latent's posterior noise, where other outputs depend on its sample.
    """

    kind: str = "normal"
    mu: str | None = None
    logvar: str | None = None
    std: str | None = None
    value: str | None = None
    codebook: int | None = None
    noise: str | None = None
    reason: str | None = None

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the encoder's outputs."""
        if self.kind == "normal":
            return tuple(name for name in (self.mu, self.logvar, self.std) if name)
        return (self.value,) if self.value else ()


@record(frozen=True)
class Latent(Record):
    """One latent z: [batch, *shape], float32, or int64 where the posterior's kind is "codes".

    `axes` names those of `shape`, where there are names; `dynamic` holds, by name, the axes that may have other sizes.
    Models that were trained on these latents take (z - shift) · scale; a tuple has a number for each index of axis 0 of
    the shape.
    """

    name: str
    shape: tuple[int, ...]
    posterior: LatentPosterior = LatentPosterior(mu="mu", logvar="logvar", std="std")
    prior: LatentPrior = LatentPrior()
    dtype: str = "float32"
    axes: tuple[str, ...] = ()
    dynamic: Mapping[str, Sizes] = field(default_factory=dict)
    scale: float | tuple[float, ...] = 1.0
    shift: float | tuple[float, ...] = 0.0


@record(frozen=True)
class Output(Record):
    """A further output of the decoder, float32 [batch, *shape]; axes named like a dynamic one have its size."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...] = ()


@record(frozen=True)
class Likelihood(Record):
    """p(x|z). `mean` names the decoder's output in data space; `logits`, of a bernoulli, the one before the sigmoid.

    `scale` is a gaussian's standard deviation or a laplace's scale b, in units of x; `scale_output` names the decoder's
    output that holds it instead, one for each value of x. Of the kind "none" nothing is known but `mean`, the decoder's
    first output, and `reason` may say why. `shape` and `axes` are those of `mean` where they are not the observation's;
    `outputs` are what else the decoder gives.
    """

    kind: str
    mean: str = "x"
    logits: str | None = None
    scale: float | None = None
    scale_output: str | None = None
    shape: tuple[int, ...] | None = None
    axes: tuple[str, ...] = ()
    outputs: tuple[Output, ...] = ()
    reason: str | None = None


@record(frozen=True)
class Golden(Record):
    """The golden vectors: `n` observations stored in `file`, and `n` prior latents of vnoise-1 seed `seed`."""

    file: str
    seed: int
    n: int


@record(frozen=True)
class Quality(Record):
    """What a variant costs against fp32 of the same component, the other component in fp32.

    `method` says how it was made, `size` how many bytes its file has. `psnr`, in dB, is 10 · log10(peak² / mean squared
    difference) of the decoder's mean or the encoder's mu, None where no number differs. `elbo_change` is the mean
    change of the ELBO in nats per observation, negative where some is lost; None where `reason` says why there is none.
    `measured` says on which data and how many, `calibration` from which ones the ranges of numbers are, if they were
    needed.
    """

    method: str
    size: int
    psnr: float | None
    peak: float
    elbo_change: float | None
    measured: str
    calibration: str | None = None
    reason: str | None = None


@record(frozen=True)
class Refusal(Record):
    """A variant that was asked for at export and that a component has not, and why."""

    component: str
    variant: str
    reason: str


@record(frozen=True)
class Variant(Record):
    """One graph: a precision or format of a component.

    `exporter` says what made the graph; `data` names the file beside it that holds its weights, where they are too
    large for the graph's own file. `tolerance` bounds, per output, the absolute difference between this machine's
    answer to the golden vectors and the stored one; `error` is the largest absolute difference between the stored
    answer and PyTorch's. `quality` is there where the graph is meant to differ from fp32.
    """

    component: str
    name: str
    folder: str
    file: str
    executor: str
    precision: str
    tolerance: Mapping[str, float]
    error: Mapping[str, float]
    ep: str | None = None
    device: str | None = None
    exporter: str | None = None
    data: str | None = None
    quality: Quality | None = None

    @property
    def path(self) -> str:
        """The graph file, relative to the bundle, with forward slashes."""
        return f"{self.folder}/{self.file}"

    @property
    def data_path(self) -> str | None:
        """The file of the graph's weights, likewise; None where they are in the graph file."""
        return None if self.data is None else f"{self.folder}/{self.data}"


@record(frozen=True, kw_only=True)
class Signature(Record):
    """What goes into a VAE's two graphs, what comes out, and what it means."""

    observation: Observation
    latents: tuple[Latent, ...]
    likelihood: Likelihood
    conditions: tuple[Condition, ...] = ()

    @property
    def latent(self) -> Latent:
        """The first latent; most VAEs have no other."""
        return self.latents[0]

    def inputs(self, component: str) -> tuple[TensorSpec, ...]:
        """A component's inputs: x or the latents, then its conditions, then the encoder's noise."""
        conditions = tuple(
            TensorSpec(condition.name, condition.dtype, condition.shape)
            for condition in self.conditions
            if component in condition.components
        )
        if component == "encoder":
            noises = tuple(
                TensorSpec(latent.posterior.noise, "float32", latent.shape, _dynamic(latent.axes, latent.dynamic))
                for latent in self.latents
                if latent.posterior.noise
            )
            return (self._observation(self.observation.name, self.observation.dtype), *conditions, *noises)
        latents = tuple(
            TensorSpec(latent.name, latent.dtype, latent.shape, _dynamic(latent.axes, latent.dynamic))
            for latent in self.latents
        )
        return (*latents, *conditions)

    def outputs(self, component: str) -> tuple[TensorSpec, ...]:
        """A component's outputs: the posteriors' parameters; or the mean, logits, scale and what else there is."""
        if component == "encoder":
            return tuple(
                TensorSpec(name, latent.dtype, latent.shape, _dynamic(latent.axes, latent.dynamic))
                for latent in self.latents
                for name in latent.posterior.outputs
            )
        likelihood = self.likelihood
        names = [name for name in (likelihood.mean, likelihood.logits, likelihood.scale_output) if name]
        dynamic = {
            **self.observation.dynamic,
            **{axis: s for latent in self.latents for axis, s in latent.dynamic.items()},
        }
        if likelihood.shape is None:
            own = tuple(self._observation(name, "float32") for name in names)
        else:
            own = tuple(
                TensorSpec(name, "float32", likelihood.shape, _dynamic(likelihood.axes, dynamic)) for name in names
            )
        further = (TensorSpec(o.name, "float32", o.shape, _dynamic(o.axes, dynamic)) for o in likelihood.outputs)
        return (*own, *further)

    def _observation(self, name: str, dtype: str) -> TensorSpec:
        observation = self.observation
        return TensorSpec(name, dtype, observation.shape, _dynamic(observation.axes, observation.dynamic))


def _dynamic(axes: tuple[str, ...], dynamic: Mapping[str, Sizes]) -> frozenset[int]:
    return frozenset(index for index, axis in enumerate(axes) if axis in dynamic)


@record(frozen=True, kw_only=True)
class Manifest(Signature):
    """What a bundle says of itself. Variants stand in the order of declaration: the first is the default.

    Of a packed bundle `packed_from` is the digest of the one it was packed from, "sha256:…", and a component that was
    left out has no variants.
    """

    package_name: str
    name: str
    golden: Golden
    encoder: Mapping[str, Variant] = field(default_factory=dict)
    decoder: Mapping[str, Variant] = field(default_factory=dict)
    description: str = ""
    license: str | None = None
    noise: str = "vnoise-1"
    reader: str | None = None
    refused: tuple[Refusal, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    producer: Mapping[str, Any] = field(default_factory=dict)
    packed_from: str | None = None
    format_version: str = FORMAT_VERSION

    @property
    def components(self) -> dict[str, Mapping[str, Variant]]:
        """The components that are there, by name: both, unless one was left out of a packed bundle."""
        both = {"encoder": self.encoder, "decoder": self.decoder}
        return {component: variants for component, variants in both.items() if variants}

    @property
    def variants(self) -> list[Variant]:
        """Every variant, encoder first."""
        return [*self.encoder.values(), *self.decoder.values()]


def parse(content: str | bytes, place: str = "manifest.json") -> Manifest:
    """Read a manifest.

    Args:
        content: the JSON text, or its UTF-8 bytes.
        place: what to call it in errors, usually its path.

    Raises:
        BundleError: it is no JSON, of another format version, or has problems: all of them, a line each.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        document = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated)
        # 1e999 and half of a surrogate pair can be read, and neither be written again nor printed.
        json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)
        raise BundleError(f"{place}: JSON in UTF-8 is expected: {reason}; copy the bundle again") from None
    manifest, found = _read(document)
    if manifest is None or found:
        raise BundleError(_refusal(document, found, place))
    return manifest


def problems(document: Any) -> list[Problem]:
    """All that is wrong with a document decoded as `parse` does; an empty list if `parse` would take it."""
    return _read(document)[1]


def dump(manifest: Manifest) -> str:
    """The manifest as JSON text, in a fixed order, ending in a newline; `parse` reads it back as an equal object."""
    return json.dumps(_document(manifest), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
    return members


def _refusal(document: Any, found: list[Problem], place: str) -> str:
    if found == [_version_problem(document)]:
        vae = document["additional_metadata"]["vae"]
        if _OLDER.fullmatch(vae["format_version"]):
            return (
                f"{place}: {found[0]}; this bundle is older than this vae-runtime: export it again with this version, "
                "or install the vae-runtime that it was made with"
            )
        reader = vae.get("reader")
        wanted = f"'{reader}'" if isinstance(reader, str) and _READER.fullmatch(reader) else "--upgrade vae-runtime"
        return f"{place}: {found[0]}; this bundle is newer than this vae-runtime: pip install {wanted}"
    if len(found) == 1:
        return f"{place}: {found[0]}; export the bundle again"
    lines = "".join(f"\n  {problem}" for problem in found)
    return f"{place}: {len(found)} problems; export the bundle again:{lines}"


# Reading: each reader takes a value and its place, notes problems, and returns the value as the dataclasses hold it
# (None where it is wrong, which is never used since a problem was noted).


_Read = Callable[[Any, str], Any]


class _Reader:
    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def wrong(self, place: str, expected: str, value: Any) -> None:
        self.problems.append(Problem(place or "the document", expected, _shown(value)))

    def members(
        self,
        value: Any,
        place: str,
        required: dict[str, _Read],
        optional: dict[str, _Read] | None = None,
        *,
        closed: bool = False,
    ) -> dict[str, Any]:
        """The members of an object, each read by its reader; unknown ones are ignored unless the object is closed."""
        optional = optional or {}
        if not isinstance(value, dict):
            self.wrong(place, "an object", value)
            return {}
        for name in sorted(required.keys() - value.keys()):
            self.wrong(_join(place, name), "this field", _ABSENT)
        if closed:
            for name in sorted(value.keys() - required.keys() - optional.keys()):
                self.wrong(_join(place, name), "no field of this name", value[name])
        return {
            name: read(value[name], _join(place, name)) for name, read in (required | optional).items() if name in value
        }

    def kinds(
        self,
        value: Any,
        place: str,
        required: Mapping[str, dict[str, _Read]],
        optional: Mapping[str, dict[str, _Read]],
    ) -> dict[str, Any]:
        """The members of an object whose `kind`, a key of `required`, decides which others it has."""
        kind = value.get("kind") if isinstance(value, dict) else None
        known = kind if isinstance(kind, str) else ""
        fields = {"kind": self.one_of(*required), **required.get(known, {})}
        return self.members(value, place, fields, optional.get(known))

    def mapping(self, read: _Read, *, least: int = 0) -> Callable[[Any, str], dict[str, Any]]:
        def read_mapping(value: Any, place: str) -> dict[str, Any]:
            if not isinstance(value, dict) or len(value) < least:
                self.wrong(place, "an object" if not least else "an object with at least one member", value)
                return {}
            return {name: read(item, _join(place, name)) for name, item in value.items()}

        return read_mapping

    def items(
        self,
        read: _Read,
        *,
        least: int = 0,
        most: int | None = None,
        kind: str = "a list",
        distinct: bool = False,
    ) -> Callable[[Any, str], tuple[Any, ...]]:
        def read_items(value: Any, place: str) -> tuple[Any, ...]:
            if not isinstance(value, list) or len(value) < least or (most is not None and len(value) > most):
                self.wrong(place, kind, value)
                return ()
            items = tuple(read(item, f"{place}[{index}]") for index, item in enumerate(value))
            right = [item for item in items if item is not None]
            if distinct and len(set(right)) < len(right):
                self.problems.append(Problem(place, f"{kind}, each once,", "some of them twice"))
            return items

        return read_items

    def text(self, pattern: re.Pattern[str] | None = None, kind: str = "a string") -> Callable[[Any, str], str | None]:
        def read_text(value: Any, place: str) -> str | None:
            if isinstance(value, str) and (pattern is None or pattern.fullmatch(value)):
                return value
            self.wrong(place, kind, value)
            return None

        return read_text

    def one_of(self, *choices: str) -> Callable[[Any, str], str | None]:
        def read_choice(value: Any, place: str) -> str | None:
            if isinstance(value, str) and value in choices:
                return value
            self.wrong(place, " or ".join(json.dumps(choice) for choice in choices), value)
            return None

        return read_choice

    def integer(self, low: int, high: int) -> Callable[[Any, str], int | None]:
        def read_integer(value: Any, place: str) -> int | None:
            # JSON has one kind of number: 3.0 is the integer 3
            if _is_number(value) and value == value // 1 and low <= value <= high:
                return int(value)
            self.wrong(place, f"an integer from {low} to {high}", value)
            return None

        return read_integer

    def number(
        self, *, positive: bool = False, least: float | None = None, factor: bool = False
    ) -> Callable[[Any, str], float | None]:
        def read_number(value: Any, place: str) -> float | None:
            wrong = not _is_number(value) or (positive and value <= 0) or (factor and value == 0)
            if not wrong and (least is None or value >= least):
                return float(value)
            kind = "a positive number" if positive else "a number other than 0" if factor else "a number"
            self.wrong(place, kind if least is None else f"a number of at least {least}", value)
            return None

        return read_number

    def anything(self, value: Any, place: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        self.wrong(place, "an object", value)
        return {}


_ABSENT: Any = object()


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _is_number(value: Any) -> bool:
    # 1e999 is JSON, and infinite once read; true and false are integers to Python alone
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300


def _join(place: str, name: str) -> str:
    if not _TENSOR.fullmatch(name) or "." in name:
        return f"{place}[{json.dumps(name)}]"
    return f"{place}.{name}" if place else name


def _read(document: Any) -> tuple[Manifest | None, list[Problem]]:
    reader = _Reader()
    problem = _version_problem(document)
    if problem:
        # Of another version nothing else can be judged.
        return None, [problem]
    name = reader.text(_NAME, "a name of letters, digits, '.', '_' and '-'")
    outer = reader.members(
        document,
        "",
        {
            "schema_version": reader.text(_SCHEMA_VERSION, 'ONNX Runtime\'s package schema "1.x"'),
            "package_name": name,
            "layout": reader.one_of("portable"),
            "components": lambda value, place: reader.members(
                value, place, {name: _component_reader(reader, name) for name in _components_of(document)}
            ),
            "additional_metadata": lambda value, place: reader.members(value, place, {"vae": _VaeReader(reader).vae}),
        },
        closed=True,
    )
    if reader.problems:
        return None, reader.problems
    manifest = Manifest(
        package_name=outer["package_name"], **outer["components"], **outer["additional_metadata"]["vae"]
    )
    return manifest, _contradictions(manifest)


def _version_problem(document: Any) -> Problem | None:
    """A format older or newer than this version can read, if the document says so plainly."""
    try:
        vae = document["additional_metadata"]["vae"]
        version = vae["format_version"]
    except (KeyError, TypeError, IndexError):
        return None
    place = "additional_metadata.vae"
    if not isinstance(version, str):
        return None
    if _OLDER.fullmatch(version) or _NEWER.fullmatch(version):
        return Problem(f"{place}.format_version", 'a version "2.x"', _shown(version))
    needs = vae.get("must_understand")
    if _VERSION.fullmatch(version) and isinstance(needs, list):
        unknown = [need for need in needs if isinstance(need, str) and need not in KNOWN_FIELDS]
        if unknown:
            expected = f"a list of fields of format {FORMAT_VERSION}"
            return Problem(f"{place}.must_understand", expected, ", ".join(map(_shown, unknown)))
    return None


def _components_of(document: Any) -> tuple[str, ...]:
    """The components that a document must have: of a packed bundle those that are there, and one at least."""
    try:
        packed = "packed_from" in document["additional_metadata"]["vae"]
        there = tuple(component for component in COMPONENTS if component in document["components"])
    except (KeyError, TypeError, IndexError):
        return COMPONENTS
    return (there or ("decoder",)) if packed else COMPONENTS


def _component_reader(reader: _Reader, component: str) -> Callable[[Any, str], dict[str, Variant]]:
    folder = reader.text(_PATH, "a relative path inside the bundle, with '/' and without '..'")
    file = reader.text(_NAME, "a file name")

    def read_variant(name: str, value: Any, place: str) -> Variant | None:
        before = len(reader.problems)
        if not _NAME.fullmatch(name) or name == _RESERVED:
            expected = f"a variant named with letters, digits, '.', '_' and '-', and not {_RESERVED!r},"
            reader.wrong(place, expected, name)
        members = reader.members(
            value,
            place,
            {
                "variant_directory": folder,
                "executor_info": reader.mapping(reader.anything, least=1),
                "additional_metadata": lambda value, place: reader.members(
                    value, place, {"vae": lambda value, place: read_ours(value, place)}
                ),
            },
            {"ep": reader.text(), "device": reader.text()},
            closed=True,
        )
        executors = [key for key in EXECUTORS if key in members.get("executor_info", {})]
        if not executors:
            # Another program's variant: its payload is none of our business.
            return None
        payload = members["executor_info"][executors[0]]
        info = reader.members(payload, _join(_join(place, "executor_info"), executors[0]), {"model_file": file})
        if len(reader.problems) > before:
            return None
        return Variant(
            component=component,
            name=name,
            folder=members["variant_directory"],
            file=info["model_file"],
            executor=executors[0],
            ep=members.get("ep"),
            device=members.get("device"),
            **members["additional_metadata"]["vae"],
        )

    def read_ours(value: Any, place: str) -> dict[str, Any]:
        numbers = reader.mapping(reader.number(least=0))
        required = {"precision": reader.text(), "tolerance": numbers, "error": numbers}
        optional = {"exporter": reader.text(), "data": file, "quality": read_quality}
        return reader.members(value, place, required, optional)

    def read_quality(value: Any, place: str) -> Quality | None:
        required = {
            "method": reader.text(),
            "size": reader.integer(1, 2**53 - 1),
            "psnr": number_or_null,
            "peak": reader.number(positive=True),
            "elbo_change": number_or_null,
            "measured": reader.text(),
        }
        members = reader.members(value, place, required, {"calibration": reader.text(), "reason": reader.text()})
        return None if reader.problems else Quality(**members)

    def number_or_null(value: Any, place: str) -> float | None:
        return None if value is None else reader.number()(value, place)

    def read_component(value: Any, place: str) -> dict[str, Variant]:
        def read_variants(value: Any, place: str) -> dict[str, Variant]:
            if not isinstance(value, dict) or not value:
                reader.wrong(place, "an object with at least one variant", value)
                return {}
            read = {name: read_variant(name, item, _join(place, name)) for name, item in value.items()}
            return {name: variant for name, variant in read.items() if variant}

        members = reader.members(
            value, place, {"variants": read_variants}, {"additional_metadata": reader.anything}, closed=True
        )
        variants: dict[str, Variant] = members.get("variants", {})
        return variants

    return read_component


class _VaeReader:
    """Reads `additional_metadata.vae`. What a method returns is None where anything was wrong so far."""

    def __init__(self, reader: _Reader) -> None:
        self.reader = reader
        self.tensor = reader.text(_TENSOR, "a tensor name of letters, digits, '_' and '.'")
        self.file = reader.text(_NAME, "a file name")
        self.size = reader.integer(1, 2**31 - 1)
        self.dtype = reader.one_of("float32", "int64")
        self.shape = reader.items(self.size, least=1, most=8, kind="a list of 1 to 8 sizes")
        self.any_shape = reader.items(self.size, most=8, kind="a list of 0 to 8 sizes")
        self.axes = reader.items(reader.text(), least=1, most=8, kind="a list of 1 to 8 axis names")
        self.dynamic = reader.mapping(self.sizes)
        self.pair: _Read = reader.items(reader.number(), least=2, most=2, kind="[min, max] or null")

    def vae(self, value: Any, place: str) -> dict[str, Any]:
        reader = self.reader
        members = reader.members(
            value,
            place,
            {
                "format_version": reader.text(_VERSION, 'a version "2.x"'),
                "name": reader.text(),
                "observation": self.observation,
                "latents": reader.items(self.latent, least=1, most=64, kind="a list of 1 to 64 latents"),
                "likelihood": self.likelihood,
                "noise": reader.one_of("vnoise-1"),
                "golden": self.golden,
            },
            {
                "conditions": reader.items(self.condition, most=64, kind="a list of at most 64 conditions"),
                "must_understand": reader.items(reader.one_of(*sorted(KNOWN_FIELDS)), kind="a list of field names"),
                "reader": reader.text(_READER, 'a requirement such as "vae-runtime>=0.1"'),
                "description": reader.text(),
                "license": reader.text(),
                "refused": reader.items(self.refusal),
                "training": reader.anything,
                "metrics": reader.anything,
                "producer": reader.anything,
                "packed_from": reader.text(_DIGEST, 'a digest, "sha256:" and 64 hexadecimal digits,'),
            },
        )
        members.pop("must_understand", None)
        return members

    def observation(self, value: Any, place: str) -> Observation | None:
        required = {
            "name": self.tensor,
            "dtype": self.dtype,
            "shape": self.shape,
            "axes": self.axes,
            "range": self.range,
        }
        optional = {"dynamic": self.dynamic, "normalisation": self.normalisation}
        members = self.reader.members(value, place, required, optional)
        return None if self.reader.problems else Observation(**members)

    def range(self, value: Any, place: str) -> tuple[float, float] | None:
        return None if value is None else self.pair(value, place)

    def normalisation(self, value: Any, place: str) -> Normalisation | None:
        reader = self.reader
        members = reader.members(value, place, {"offset": reader.number(), "divisor": reader.number(positive=True)})
        return None if reader.problems else Normalisation(**members)

    def sizes(self, value: Any, place: str) -> Sizes | None:
        required = {"min": self.size, "max": self.size}
        members = self.reader.members(value, place, required, {"multiple": self.size})
        return None if self.reader.problems else Sizes(**members)

    def condition(self, value: Any, place: str) -> Condition | None:
        reader = self.reader
        line = reader.text(_LINE, "one line of text")
        component = reader.one_of(*COMPONENTS)
        required = {
            "name": self.tensor,
            "dtype": self.dtype,
            "shape": self.any_shape,
            "components": reader.items(component, least=1, kind="a list of components", distinct=True),
        }
        classes = reader.items(line, least=1, kind="a list of names of classes", distinct=True)
        members = reader.members(value, place, required, {"classes": classes, "range": self.range})
        return None if reader.problems else Condition(**members)

    def latent(self, value: Any, place: str) -> Latent | None:
        required = {
            "name": self.tensor,
            "dtype": self.dtype,
            "shape": self.shape,
            "prior": self.prior,
            "posterior": self.posterior,
        }
        optional = {
            "axes": self.axes,
            "dynamic": self.dynamic,
            "scale": self.one_or_each(self.reader.number(factor=True)),
            "shift": self.one_or_each(self.reader.number()),
        }
        members = self.reader.members(value, place, required, optional)
        return None if self.reader.problems else Latent(**members)

    def one_or_each(self, number: Callable[[Any, str], float | None]) -> _Read:
        each = self.reader.items(number, least=1, kind="a number, or a list of numbers,")
        return lambda value, place: (each if isinstance(value, list) else number)(value, place)

    def prior(self, value: Any, place: str) -> LatentPrior | None:
        reader = self.reader
        mixture: dict[str, _Read] = {
            "file": self.file,
            "components": reader.integer(1, 4096),
            "covariance": reader.one_of("diagonal", "full"),
        }
        required: dict[str, dict[str, _Read]] = {"normal": {}, "mixture": mixture, "sphere": {}, "none": {}}
        members = reader.kinds(value, place, required, {"none": {"reason": reader.text()}})
        return None if reader.problems else LatentPrior(**members)

    def posterior(self, value: Any, place: str) -> LatentPosterior | None:
        reader = self.reader
        required: dict[str, dict[str, _Read]] = {
            "normal": {"mu": self.tensor, "logvar": self.tensor, "std": self.tensor},
            "codes": {"value": self.tensor, "codebook": self.size},
            "none": {},
        }
        optional: dict[str, dict[str, _Read]] = {
            "normal": {"noise": self.tensor},
            "none": {"value": self.tensor, "reason": reader.text()},
        }
        members = reader.kinds(value, place, required, optional)
        return None if reader.problems else LatentPosterior(**members)

    def likelihood(self, value: Any, place: str) -> Likelihood | None:
        reader = self.reader
        scale: dict[str, _Read] = {"scale": reader.number(positive=True)}
        if isinstance(value, dict) and "scale_output" in value:
            scale = {"scale_output": self.tensor}
            if value.get("kind") in ("gaussian", "laplace") and "scale" in value:
                reader.wrong(_join(place, "scale"), "no field of this name beside scale_output", value["scale"])
        own: dict[str, dict[str, _Read]] = {"bernoulli": {}, "gaussian": scale, "laplace": scale}
        required = {kind: {"mean": self.tensor, **own.get(kind, {})} for kind in (*LIKELIHOODS, "none")}
        outputs = reader.items(self.output, most=64, kind="a list of at most 64 outputs")
        shared: dict[str, _Read] = {"shape": self.shape, "axes": self.axes, "outputs": outputs}
        optional = dict.fromkeys(required, shared)
        optional["bernoulli"] = {"logits": self.tensor, **shared}
        optional["none"] = {**shared, "reason": reader.text()}
        members = reader.kinds(value, place, required, optional)
        return None if reader.problems else Likelihood(**members)

    def output(self, value: Any, place: str) -> Output | None:
        required = {"name": self.tensor, "shape": self.any_shape}
        members = self.reader.members(value, place, required, {"axes": self.axes})
        return None if self.reader.problems else Output(**members)

    def golden(self, value: Any, place: str) -> Golden | None:
        reader = self.reader
        fields = {"file": self.file, "seed": reader.integer(0, 2**53 - 1), "n": reader.integer(1, 2**20)}
        members = reader.members(value, place, fields)
        return None if reader.problems else Golden(**members)

    def refusal(self, value: Any, place: str) -> Refusal | None:
        reader = self.reader
        name = reader.text(_NAME, "a name of letters, digits, '.', '_' and '-'")
        fields = {"component": reader.one_of(*COMPONENTS), "variant": name, "reason": reader.text()}
        members = reader.members(value, place, fields)
        return None if reader.problems else Refusal(**members)


def _contradictions(manifest: Manifest) -> list[Problem]:
    """Fields that are right by themselves and wrong together; the specification lists them after the schema."""
    vae = "additional_metadata.vae"
    observation = manifest.observation
    found = [*_axes_problems(f"{vae}.observation", observation.shape, observation.axes, observation.dynamic)]
    found += _range_problems(f"{vae}.observation", observation.range)
    for index, condition in enumerate(manifest.conditions):
        found += _condition_problems(f"{vae}.conditions[{index}]", condition)
    for index, latent in enumerate(manifest.latents):
        found += _latent_problems(f"{vae}.latents[{index}]", latent)
    found += _likelihood_problems(f"{vae}.likelihood", manifest.likelihood)
    found += _name_problems(vae, manifest)
    both = {"encoder": manifest.encoder, "decoder": manifest.decoder}
    for component, variants in ((manifest.packed_from and manifest.components) or both).items():
        place = f"components.{component}.variants"
        outputs = [output.name for output in manifest.outputs(component)]
        if not any(variant.executor == "ort" for variant in variants.values()):
            found.append(Problem(place, 'at least one variant with executor_info "ort"', str(list(variants))))
        for variant in variants.values():
            for field_name, numbers in (("tolerance", variant.tolerance), ("error", variant.error)):
                if set(numbers) != set(outputs):
                    where = f"{_join(place, variant.name)}.additional_metadata.vae.{field_name}"
                    found.append(Problem(where, f"a number for each of {sorted(outputs)}", str(sorted(numbers))))
    for index, refusal in enumerate(manifest.refused):
        if refusal.variant in manifest.components.get(refusal.component, {}):
            where = f"{vae}.refused[{index}].variant"
            found.append(Problem(where, f"a variant that {refusal.component} has not", json.dumps(refusal.variant)))
    paths = [path for variant in manifest.variants for path in (variant.path, variant.data_path) if path]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        found.append(Problem("components", f"one use of the file {path}", str(paths.count(path))))
    return found


def _axes_problems(
    place: str, shape: tuple[int, ...], axes: tuple[str, ...], dynamic: Mapping[str, Sizes]
) -> Iterator[Problem]:
    if axes and len(axes) != len(shape):
        yield Problem(f"{place}.axes", f"one name for each of the {len(shape)} sizes of the shape", str(len(axes)))
        return
    for axis, sizes in dynamic.items():
        where = _join(f"{place}.dynamic", axis)
        if axes.count(axis) != 1:
            yield Problem(where, "the name of one of the axes", str(list(axes)))
        elif shape[axes.index(axis)] not in sizes:
            yield Problem(where, f"sizes with {shape[axes.index(axis)]}, as in the shape,", str(sizes))


def _range_problems(place: str, bounds: tuple[float, float] | None) -> Iterator[Problem]:
    if bounds and not bounds[0] < bounds[1]:
        yield Problem(f"{place}.range", "min below max", str(list(bounds)))


def _condition_problems(place: str, condition: Condition) -> Iterator[Problem]:
    yield from _range_problems(place, condition.range)
    if condition.classes is None:
        return
    if condition.dtype != "int64" or condition.shape:
        got = f"{condition.dtype} {list(condition.shape)}"
        yield Problem(f"{place}.classes", "no classes of what is not int64 []", got)
    if condition.range:
        yield Problem(f"{place}.range", "no range beside classes", str(list(condition.range)))


def _latent_problems(place: str, latent: Latent) -> Iterator[Problem]:
    yield from _axes_problems(place, latent.shape, latent.axes, latent.dynamic)
    prior, posterior = latent.prior, latent.posterior
    if (latent.dtype == "int64") != (posterior.kind == "codes"):
        expected = "int64 of codes" if posterior.kind == "codes" else "float32 of what are not codes"
        yield Problem(f"{place}.dtype", expected, latent.dtype)
    if posterior.kind == "codes" and prior.kind != "none":
        yield Problem(f"{place}.prior.kind", '"none" for codes', json.dumps(prior.kind))
    if posterior.kind == "none" and posterior.value is None and prior.kind != "normal":
        expected = '"normal" for a latent that the encoder does not give'
        yield Problem(f"{place}.prior.kind", expected, json.dumps(prior.kind))
    if prior.kind == "mixture" and latent.dynamic:
        yield Problem(f"{place}.prior.kind", "another prior for a latent with dynamic axes", json.dumps(prior.kind))
    for name, numbers in (("scale", latent.scale), ("shift", latent.shift)):
        if isinstance(numbers, tuple) and len(numbers) != latent.shape[0]:
            expected = f"one number, or {latent.shape[0]} for the first axis of the shape"
            yield Problem(f"{place}.{name}", expected, str(len(numbers)))


def _likelihood_problems(place: str, likelihood: Likelihood) -> Iterator[Problem]:
    if likelihood.shape is None:
        if likelihood.axes:
            yield Problem(f"{place}.axes", "no axes without a shape", str(list(likelihood.axes)))
    else:
        yield from _axes_problems(place, likelihood.shape, likelihood.axes, {})
    for index, output in enumerate(likelihood.outputs):
        yield from _axes_problems(f"{place}.outputs[{index}]", output.shape, output.axes, {})


def _name_problems(vae: str, manifest: Manifest) -> Iterator[Problem]:
    # Inputs of both components: the golden vectors are named by input, whichever component it is of.
    inputs = [(f"{vae}.observation.name", manifest.observation.name)]
    inputs += [(f"{vae}.conditions[{index}].name", item.name) for index, item in enumerate(manifest.conditions)]
    encoded = []
    for index, latent in enumerate(manifest.latents):
        place = f"{vae}.latents[{index}]"
        inputs.append((f"{place}.name", latent.name))
        if latent.posterior.noise:
            inputs.append((f"{place}.posterior.noise", latent.posterior.noise))
        encoded += [(f"{place}.posterior", name) for name in latent.posterior.outputs]
    decoded = [(f"{vae}.likelihood", output.name) for output in manifest.outputs("decoder")]
    for what, named in (("input", inputs), ("output", encoded), ("output", decoded)):
        taken = set()
        for place, name in named:
            if name in taken:
                yield Problem(place, f"another name than any other {what}'s", name)
            taken.add(name)


# Writing.


def _document(manifest: Manifest) -> dict[str, Any]:
    vae: dict[str, Any] = {
        "format_version": manifest.format_version,
        # To readers that do not know it, a component that is absent would be damage.
        "must_understand": ["packed_from"] if len(manifest.components) < len(COMPONENTS) else None,
        "reader": manifest.reader,
        "name": manifest.name,
        "description": manifest.description or None,
        "license": manifest.license,
        "observation": _observation_document(manifest.observation),
        "conditions": [_condition_document(condition) for condition in manifest.conditions] or None,
        "latents": [_latent_document(latent) for latent in manifest.latents],
        "likelihood": _likelihood_document(manifest.likelihood),
        "noise": manifest.noise,
        "golden": vars(manifest.golden),
        "refused": [vars(refusal) for refusal in manifest.refused] or None,
        "training": dict(manifest.training) or None,
        "metrics": dict(manifest.metrics) or None,
        "producer": dict(manifest.producer) or None,
        "packed_from": manifest.packed_from,
    }
    return {
        "schema_version": "1.0",
        "package_name": manifest.package_name,
        "layout": "portable",
        "components": {
            component: {"variants": {name: _variant_document(variant) for name, variant in variants.items()}}
            for component, variants in manifest.components.items()
        },
        "additional_metadata": {"vae": _present(vae)},
    }


def _observation_document(observation: Observation) -> dict[str, Any]:
    return _present(
        {
            "name": observation.name,
            "dtype": observation.dtype,
            "shape": list(observation.shape),
            "axes": list(observation.axes),
            "dynamic": _dynamic_document(observation.dynamic),
            "range": list(observation.range) if observation.range else _KEEP_NULL,
            "normalisation": vars(observation.normalisation) if observation.normalisation else None,
        }
    )


def _condition_document(condition: Condition) -> dict[str, Any]:
    return _present(
        {
            "name": condition.name,
            "dtype": condition.dtype,
            "shape": list(condition.shape),
            "classes": list(condition.classes) if condition.classes else None,
            "range": list(condition.range) if condition.range else None,
            "components": list(condition.components),
        }
    )


def _latent_document(latent: Latent) -> dict[str, Any]:
    def one_or_each(value: float | tuple[float, ...], usual: float) -> Any:
        return list(value) if isinstance(value, tuple) else None if value == usual else value

    return _present(
        {
            "name": latent.name,
            "dtype": latent.dtype,
            "shape": list(latent.shape),
            "axes": list(latent.axes) or None,
            "dynamic": _dynamic_document(latent.dynamic),
            "scale": one_or_each(latent.scale, 1.0),
            "shift": one_or_each(latent.shift, 0.0),
            "prior": _present(vars(latent.prior)),
            "posterior": _present(vars(latent.posterior)),
        }
    )


def _likelihood_document(likelihood: Likelihood) -> dict[str, Any]:
    outputs = [
        _present({"name": output.name, "shape": list(output.shape), "axes": list(output.axes) or None})
        for output in likelihood.outputs
    ]
    changed = {
        "shape": None if likelihood.shape is None else list(likelihood.shape),
        "axes": list(likelihood.axes) or None,
        "outputs": outputs or None,
    }
    return _present({**vars(likelihood), **changed})


def _dynamic_document(dynamic: Mapping[str, Sizes]) -> dict[str, Any] | None:
    return {axis: dict(vars(sizes)) for axis, sizes in dynamic.items()} or None


def _variant_document(variant: Variant) -> dict[str, Any]:
    ours = {
        "precision": variant.precision,
        "exporter": variant.exporter,
        "data": variant.data,
        "tolerance": dict(variant.tolerance),
        "error": dict(variant.error),
        "quality": _quality_document(variant.quality) if variant.quality else None,
    }
    return _present(
        {
            "variant_directory": variant.folder,
            "ep": variant.ep,
            "device": variant.device,
            "executor_info": {variant.executor: {"model_file": variant.file}},
            "additional_metadata": {"vae": _present(ours)},
        }
    )


def _quality_document(quality: Quality) -> dict[str, Any]:
    nullable = {"psnr": quality.psnr, "elbo_change": quality.elbo_change}
    return _present({**vars(quality), **{key: _KEEP_NULL if v is None else v for key, v in nullable.items()}})


_KEEP_NULL: Any = object()


def _present(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if value is _KEEP_NULL else value for name, value in members.items() if value is not None}
