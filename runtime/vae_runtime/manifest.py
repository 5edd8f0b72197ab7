"""The bundle's manifest: its fields as dataclasses, read and checked with the standard library, and written.

docs/bundle-format.md is the specification, docs/bundle-format.schema.json its JSON Schema. The outer document is ONNX
Runtime's model package manifest; everything of ours lives under `additional_metadata.vae` of the package and of each
variant. Reading reports every problem at once, each with its place.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import BundleError

__all__ = [
    "EXECUTORS",
    "FORMAT_VERSION",
    "KNOWN_FIELDS",
    "Golden",
    "Latent",
    "Likelihood",
    "Manifest",
    "Normalisation",
    "Observation",
    "Problem",
    "Variant",
    "dump",
    "parse",
    "problems",
]

FORMAT_VERSION = "1.0"
COMPONENTS = ("encoder", "decoder")
LIKELIHOODS = ("bernoulli", "gaussian", "laplace")
# Whose payload under `executor_info` a variant carries: ONNX Runtime, torch.jit.load, torch.export.load.
EXECUTORS = ("ort", "torchscript", "torch_export")

# Every field of this format version, as `must_understand` names it.
KNOWN_FIELDS = frozenset(
    ["format_version", "must_understand", "reader", "name", "description", "licence", "observation", "latents"]
    + ["likelihood", "noise", "golden", "training", "metrics", "producer"]
    + [f"observation.{name}" for name in ("name", "dtype", "shape", "axes", "range", "normalisation")]
    + [f"latents.{name}" for name in ("name", "dtype", "shape", "prior", "posterior")]
    + [f"likelihood.{name}" for name in ("kind", "mean", "logits", "scale")]
    + [f"golden.{name}" for name in ("file", "seed", "n")]
)

_SEGMENT = "[A-Za-z0-9_-][A-Za-z0-9._-]*"
_NAME = re.compile(_SEGMENT)
_PATH = re.compile(f"{_SEGMENT}(/{_SEGMENT})*")
_TENSOR = re.compile("[A-Za-z_][A-Za-z0-9_.]*")
_VERSION = re.compile(r"1\.(0|[1-9][0-9]*)")
_NEWER = re.compile(r"([2-9]|[1-9][0-9]+)\.(0|[1-9][0-9]*)")
# What errors tell people to install comes out of a file, so it can name nothing but this package.
_READER = re.compile(r"vae-runtime>=[0-9]+(\.[0-9]+)*")
# The golden vectors' name for PyTorch's answers.
_RESERVED = "pytorch"


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a manifest: where, what was expected, what was got."""

    place: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.place}: {self.expected} is expected, got {self.got}"


@dataclass(frozen=True)
class Normalisation:
    """How raw data become observations: x = (raw - offset) / divisor."""

    offset: float
    divisor: float


@dataclass(frozen=True)
class Observation:
    """One observation x as the encoder takes it: float32 [batch, *shape].

    `range` bounds its values, None where any finite number will do; `axes` names those of `shape`.
    """

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    range: tuple[float, float] | None = None
    normalisation: Normalisation | None = None


@dataclass(frozen=True)
class Latent:
    """One latent z: float32 [batch, *shape], a priori standard normal, a posteriori diagonal normal.

    `mu`, `logvar` and `std` name the encoder's outputs.
    """

    name: str
    shape: tuple[int, ...]
    mu: str = "mu"
    logvar: str = "logvar"
    std: str = "std"


@dataclass(frozen=True)
class Likelihood:
    """p(x|z). `mean` names the decoder's output in data space; `logits`, of a bernoulli, the one before the sigmoid.

    `scale` is a gaussian's standard deviation or a laplace's scale b, in units of x.
    """

    kind: str
    mean: str = "x"
    logits: str | None = None
    scale: float | None = None


@dataclass(frozen=True)
class Golden:
    """The golden vectors: `n` observations stored in `file`, and `n` prior latents of vnoise-1 seed `seed`."""

    file: str
    seed: int
    n: int


@dataclass(frozen=True)
class Variant:
    """One graph: a precision or format of a component.

    `tolerance` bounds, per output, the absolute difference between this machine's answer to the golden vectors and the
    stored one; `error` is the largest absolute difference between the stored answer and PyTorch's.
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

    @property
    def path(self) -> str:
        """The graph file, relative to the bundle, with forward slashes."""
        return f"{self.folder}/{self.file}"


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself. Variants stand in the order of declaration: the first is the default."""

    package_name: str
    name: str
    observation: Observation
    latents: tuple[Latent, ...]
    likelihood: Likelihood
    golden: Golden
    encoder: Mapping[str, Variant]
    decoder: Mapping[str, Variant]
    description: str = ""
    licence: str | None = None
    noise: str = "vnoise-1"
    reader: str | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    producer: Mapping[str, Any] = field(default_factory=dict)
    format_version: str = FORMAT_VERSION

    @property
    def latent(self) -> Latent:
        """The VAE's only latent."""
        return self.latents[0]

    @property
    def components(self) -> dict[str, Mapping[str, Variant]]:
        """Both components by name."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    @property
    def variants(self) -> list[Variant]:
        """Every variant, encoder first."""
        return [*self.encoder.values(), *self.decoder.values()]

    def outputs(self, component: str) -> tuple[str, ...]:
        """The names of a component's outputs."""
        if component == "encoder":
            return tuple(name for latent in self.latents for name in (latent.mu, latent.logvar, latent.std))
        return (self.likelihood.mean, *([self.likelihood.logits] if self.likelihood.logits else []))


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
        reader = document["additional_metadata"]["vae"].get("reader")
        wanted = f"'{reader}'" if isinstance(reader, str) and _READER.fullmatch(reader) else "--upgrade vae-runtime"
        return f"{place}: {found[0]}; this bundle is newer than this vae-runtime: pip install {wanted}"
    if len(found) == 1:
        return f"{place}: {found[0]}; export the bundle again"
    lines = "".join(f"\n  {problem}" for problem in found)
    return f"{place}: {len(found)} problems; export the bundle again:{lines}"


# Reading: each reader takes a value and its place, notes problems, and returns the value as the dataclasses hold it
# (None where it is wrong, which is never used since a problem was noted).


class _Reader:
    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def wrong(self, place: str, expected: str, value: Any) -> None:
        self.problems.append(Problem(place or "the document", expected, _shown(value)))

    def members(
        self,
        value: Any,
        place: str,
        required: dict[str, Callable[[Any, str], Any]],
        optional: dict[str, Callable[[Any, str], Any]] | None = None,
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

    def mapping(self, read: Callable[[Any, str], Any], *, least: int = 0) -> Callable[[Any, str], dict[str, Any]]:
        def read_mapping(value: Any, place: str) -> dict[str, Any]:
            if not isinstance(value, dict) or len(value) < least:
                self.wrong(place, "an object" if not least else "an object with at least one member", value)
                return {}
            return {name: read(item, _join(place, name)) for name, item in value.items()}

        return read_mapping

    def items(
        self, read: Callable[[Any, str], Any], *, least: int = 0, most: int | None = None, kind: str = "a list"
    ) -> Callable[[Any, str], tuple[Any, ...]]:
        def read_items(value: Any, place: str) -> tuple[Any, ...]:
            if not isinstance(value, list) or len(value) < least or (most is not None and len(value) > most):
                self.wrong(place, kind, value)
                return ()
            return tuple(read(item, f"{place}[{index}]") for index, item in enumerate(value))

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

    def number(self, *, positive: bool = False, least: float | None = None) -> Callable[[Any, str], float | None]:
        def read_number(value: Any, place: str) -> float | None:
            too_small = (
                (positive and value <= 0) or (least is not None and value < least) if _is_number(value) else True
            )
            if not too_small:
                return float(value)
            kind = "a positive number" if positive else "a number" if least is None else f"a number of at least {least}"
            self.wrong(place, kind, value)
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
            "schema_version": reader.text(_VERSION, 'ONNX Runtime\'s package schema "1.x"'),
            "package_name": name,
            "layout": reader.one_of("portable"),
            "components": lambda value, place: reader.members(
                value, place, {component: _component_reader(reader, component) for component in COMPONENTS}
            ),
            "additional_metadata": lambda value, place: reader.members(
                value, place, {"vae": lambda value, place: _read_vae(reader, value, place)}
            ),
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
    """A format newer than this version can read, if the document says so plainly."""
    try:
        vae = document["additional_metadata"]["vae"]
        version = vae["format_version"]
    except (KeyError, TypeError, IndexError):
        return None
    place = "additional_metadata.vae"
    if not isinstance(version, str):
        return None
    if _NEWER.fullmatch(version):
        return Problem(f"{place}.format_version", 'a version "1.x"', _shown(version))
    needs = vae.get("must_understand")
    if _VERSION.fullmatch(version) and isinstance(needs, list):
        unknown = [need for need in needs if isinstance(need, str) and need not in KNOWN_FIELDS]
        if unknown:
            expected = f"a list of fields of format {FORMAT_VERSION}"
            return Problem(f"{place}.must_understand", expected, ", ".join(map(_shown, unknown)))
    return None


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
        return reader.members(value, place, {"precision": reader.text(), "tolerance": numbers, "error": numbers})

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


def _read_vae(reader: _Reader, value: Any, place: str) -> dict[str, Any]:
    tensor = reader.text(_TENSOR, "a tensor name of letters, digits, '_' and '.'")
    shape = reader.items(reader.integer(1, 2**31 - 1), least=1, most=8, kind="a list of 1 to 8 sizes")
    pair = reader.items(reader.number(), least=2, most=2, kind="[least, greatest] or null")

    def read_range(value: Any, place: str) -> tuple[float, float] | None:
        return None if value is None else pair(value, place)

    def read_normalisation(value: Any, place: str) -> Normalisation | None:
        fields = {"offset": reader.number(), "divisor": reader.number(positive=True)}
        members = reader.members(value, place, fields)
        return Normalisation(**members) if members.keys() == fields.keys() else None

    def read_observation(value: Any, place: str) -> Observation | None:
        members = reader.members(
            value,
            place,
            {
                "name": tensor,
                "dtype": reader.one_of("float32"),
                "shape": shape,
                "axes": reader.items(reader.text(), least=1, most=8, kind="a list of 1 to 8 axis names"),
                "range": read_range,
            },
            {"normalisation": read_normalisation},
        )
        members.pop("dtype", None)
        return Observation(**members) if {"name", "shape", "axes", "range"} <= members.keys() else None

    def read_latent(value: Any, place: str) -> Latent | None:
        def read_posterior(value: Any, place: str) -> dict[str, Any]:
            fields = {"kind": reader.one_of("normal"), "mu": tensor, "logvar": tensor, "std": tensor}
            members = reader.members(value, place, fields)
            members.pop("kind", None)
            return members

        def read_prior(value: Any, place: str) -> dict[str, Any]:
            return reader.members(value, place, {"kind": reader.one_of("normal")})

        fields = {"dtype": reader.one_of("float32"), "prior": read_prior, "posterior": read_posterior}
        members = reader.members(value, place, {"name": tensor, "shape": shape, **fields})
        if not {"name", "shape", "posterior"} <= members.keys() or len(members["posterior"]) < 3:
            return None
        return Latent(name=members["name"], shape=members["shape"], **members["posterior"])

    def read_likelihood(value: Any, place: str) -> Likelihood | None:
        kind = value.get("kind") if isinstance(value, dict) else None
        required: dict[str, Callable[[Any, str], Any]] = {"kind": reader.one_of(*LIKELIHOODS), "mean": tensor}
        if kind == "bernoulli":
            required["logits"] = tensor
        elif isinstance(kind, str) and kind in LIKELIHOODS:
            required["scale"] = reader.number(positive=True)
        members = reader.members(value, place, required)
        return Likelihood(**members) if members.keys() == required.keys() else None

    def read_golden(value: Any, place: str) -> Golden | None:
        file = reader.text(_NAME, "a file name")
        fields = {"file": file, "seed": reader.integer(0, 2**53 - 1), "n": reader.integer(1, 2**20)}
        members = reader.members(value, place, fields)
        return Golden(**members) if members.keys() == fields.keys() else None

    latents = reader.items(read_latent, least=1, most=1, kind="a list of exactly one latent")
    members = reader.members(
        value,
        place,
        {
            "format_version": reader.text(_VERSION, 'a version "1.x"'),
            "name": reader.text(),
            "observation": read_observation,
            "latents": latents,
            "likelihood": read_likelihood,
            "noise": reader.one_of("vnoise-1"),
            "golden": read_golden,
        },
        {
            "must_understand": reader.items(reader.one_of(*sorted(KNOWN_FIELDS)), kind="a list of field names"),
            "reader": reader.text(_READER, 'a requirement such as "vae-runtime>=0.1"'),
            "description": reader.text(),
            "licence": reader.text(),
            "training": reader.anything,
            "metrics": reader.anything,
            "producer": reader.anything,
        },
    )
    members.pop("must_understand", None)
    return members


def _contradictions(manifest: Manifest) -> list[Problem]:
    """Fields that are right by themselves and wrong together; the specification lists them after the schema."""
    found = []
    vae = "additional_metadata.vae"
    observation, latent = manifest.observation, manifest.latent
    if len(observation.axes) != len(observation.shape):
        expected = f"one name for each of the {len(observation.shape)} sizes of the shape"
        found.append(Problem(f"{vae}.observation.axes", expected, str(len(observation.axes))))
    if observation.range and not observation.range[0] < observation.range[1]:
        found.append(Problem(f"{vae}.observation.range", "least below greatest", str(list(observation.range))))
    for component, variants in manifest.components.items():
        place = f"components.{component}.variants"
        outputs = manifest.outputs(component)
        if len(set(outputs)) < len(outputs):
            part = "latents[0].posterior" if component == "encoder" else "likelihood"
            found.append(Problem(f"{vae}.{part}", "a different name for each output", str(list(outputs))))
        if not any(variant.executor == "ort" for variant in variants.values()):
            found.append(Problem(place, 'at least one variant with executor_info "ort"', str(list(variants))))
        for variant in variants.values():
            for field_name, numbers in (("tolerance", variant.tolerance), ("error", variant.error)):
                if set(numbers) != set(outputs):
                    where = f"{_join(place, variant.name)}.additional_metadata.vae.{field_name}"
                    found.append(Problem(where, f"a number for each of {sorted(outputs)}", str(sorted(numbers))))
    paths = [variant.path for variant in manifest.variants]
    for path in sorted({path for path in paths if paths.count(path) > 1}):
        found.append(Problem("components", f"one variant for the file {path}", str(paths.count(path))))
    if observation.name == latent.name:
        found.append(Problem(f"{vae}.latents[0].name", "another name than the observation's", latent.name))
    return found


# Writing.


def _document(manifest: Manifest) -> dict[str, Any]:
    observation, latent, likelihood = manifest.observation, manifest.latent, manifest.likelihood
    vae: dict[str, Any] = {
        "format_version": manifest.format_version,
        "reader": manifest.reader,
        "name": manifest.name,
        "description": manifest.description or None,
        "licence": manifest.licence,
        "observation": _present(
            {
                "name": observation.name,
                "dtype": "float32",
                "shape": list(observation.shape),
                "axes": list(observation.axes),
                "range": list(observation.range) if observation.range else _KEEP_NULL,
                "normalisation": vars(observation.normalisation) if observation.normalisation else None,
            }
        ),
        "latents": [
            {
                "name": latent.name,
                "dtype": "float32",
                "shape": list(latent.shape),
                "prior": {"kind": "normal"},
                "posterior": {"kind": "normal", "mu": latent.mu, "logvar": latent.logvar, "std": latent.std},
            }
        ],
        "likelihood": _present(vars(likelihood)),
        "noise": manifest.noise,
        "golden": vars(manifest.golden),
        "training": dict(manifest.training) or None,
        "metrics": dict(manifest.metrics) or None,
        "producer": dict(manifest.producer) or None,
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


def _variant_document(variant: Variant) -> dict[str, Any]:
    ours = {"precision": variant.precision, "tolerance": dict(variant.tolerance), "error": dict(variant.error)}
    return _present(
        {
            "variant_directory": variant.folder,
            "ep": variant.ep,
            "device": variant.device,
            "executor_info": {variant.executor: {"model_file": variant.file}},
            "additional_metadata": {"vae": ours},
        }
    )


_KEEP_NULL: Any = object()


def _present(members: Mapping[str, Any]) -> dict[str, Any]:
    return {name: None if value is _KEEP_NULL else value for name, value in members.items() if value is not None}
