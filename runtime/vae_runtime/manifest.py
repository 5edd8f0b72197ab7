"""The records of a bundle's manifest. A field is one line, which says how it is read, written and checked.

docs/bundle-format.md is the specification. A new field is a line here, and a sentence there; `document` reads and
writes the whole, `schema` makes docs/bundle-format.schema.json of these lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .fields import FREE, TEXT, Choice, Either, Flag, Integer, Later, List, Map, Nullable, Number, Struct, Text
from .likelihood import KINDS
from .noise import SPEC
from .records import Record, field, record

if TYPE_CHECKING:
    from .chunks import Stream
    from .columns import Column
    from .held_out import HeldOut

FORMAT_VERSION = "2.0"
COMPONENTS = ("encoder", "decoder")

# The kinds of likelihood that may name an output of logits, and those that have a scale.
WITH_LOGITS = tuple(name for name, kind in KINDS.items() if kind.logits)
WITH_SCALE = tuple(name for name, kind in KINDS.items() if kind.scale)

_SEGMENT = "[A-Za-z0-9_-][A-Za-z0-9._-]*"
_ONE_NAME = {"name": "name", "description": "One file name, safe on every system."}
NAME = Text(_SEGMENT, "a name of letters, digits, '.', '_' and '-'", **_ONE_NAME)
FILE = Text(_SEGMENT, "a file name", **_ONE_NAME)
TENSOR = Text(
    "[A-Za-z_][A-Za-z0-9_.]*", "a tensor name of letters, digits, '_' and '.'", name="tensor",
    description="The name of a graph's input or output.",
)  # fmt: skip
PATH = Text(
    f"{_SEGMENT}(/{_SEGMENT})*", "a relative path inside the bundle, with '/' and without '..'", name="path",
    description="Names joined by '/': relative, and without '.', '..' and hidden files.",
)  # fmt: skip
# "pytorch" is the golden vectors' name for PyTorch's answers.
VARIANT_NAME = Text(
    _SEGMENT, "a variant named with letters, digits, '.', '_' and '-', and not 'pytorch'", but="pytorch"
)
VERSION = Text(r"2\.(0|[1-9][0-9]*)", 'a version "2.x"', name="version")
# What errors tell people to install comes out of a file, so it can name nothing but this package.
READER = Text(r"vae-runtime>=[0-9]{1,9}(\.[0-9]{1,9}){0,7}", 'a requirement such as "vae-runtime>=0.1"')
DIGEST = Text(
    "sha256:[0-9a-f]{64}", 'a digest, "sha256:" and 64 hexadecimal digits',
    description="The digest of the bundle that this one was packed from.",
)  # fmt: skip
DTYPE = Choice("float32", "int64", name="dtype")
COMPONENT = Choice(*COMPONENTS)
COMPONENT_NAMES = List(COMPONENT, "a list of components", min=1, distinct=True)
SIZE = Integer(1, 2**31 - 1, name="size")
NUMBER = Number(name="number")
POSITIVE = Number("a positive number", above=0, name="positive")
NUMBERS = Map(
    Number("a number of at least 0", min=0), name="numbers", description="A number of at least 0 for each output."
)
SPEED = Map(POSITIVE, name="speed", description="How many times as fast as fp32 it is, by the rows of a call.")
HALO = Map(Integer(0, 2**31 - 1), name="halo", description="Values of the latent on either side, by axis.")
SHAPE = List(SIZE, "a list of 1 to 8 sizes", min=1, max=8, name="shape", description="Sizes without the batch axis.")
ANY_SHAPE = List(SIZE, "a list of 0 to 8 sizes", max=8, name="any_shape", description="As shape, or [] for one value.")
AXES = List(TEXT, "a list of 1 to 8 axis names", min=1, max=8, name="axes", description="A name for each size.")
RANGE = Nullable(
    List(NUMBER, "[min, max] or null", min=2, max=2),
    name="range",
    description="[min, max], or null where any finite number will do.",
)
# No control characters, no line or paragraph separators.
CLASSES = List(
    Text(r"[^\u0000-\u001f\u007f-\u009f\u2028\u2029]+", "one line of text"), "a list of names of classes",
    min=1, distinct=True, description="Names of the values 0, 1, ...: one line of text each.",
)  # fmt: skip
SCALE = Either(
    Number("a number other than 0", but=0, name="factor"), "a number, or a list of numbers",
    description="One, or one for each index of axis 0 of the shape.",
)  # fmt: skip
SHIFT = Either(NUMBER, "a number, or a list of numbers", description="As scale.")
DIVISOR = Either(POSITIVE, "a positive number, or a list of such", description="As scale.")


@record(frozen=True)
class Sizes(Record):
    """The proven sizes of a dynamic axis: `min`, `min + step`, `min + 2 · step` and so on, up to `max`."""

    min: int = field(SIZE)
    max: int = field(SIZE)
    step: int = field(SIZE, default=1)

    def __contains__(self, size: int) -> bool:
        return self.min <= size <= self.max and (size - self.min) % self.step == 0

    def __str__(self) -> str:
        return f"{self.min} … {self.max}" + (f" in steps of {self.step}" if self.step > 1 else "")


DYNAMIC = Map(
    Struct(Sizes, name="sizes"),
    name="dynamic",
    description="The axes that may have other sizes, by name: from min to max in steps of `step`.",
)


@record(frozen=True)
class TensorSpec(Record):
    """One input or output of a graph, without its batch axis, which is axis 0.

    `shape` is the usual shape, which the golden vectors have. `dynamic` holds the numbers, from 0, of the axes that may
    have other sizes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    dynamic: frozenset[int] = frozenset()


@record(frozen=True)
class Normalisation(Record):
    """The map from raw data to observations: x = (raw - offset) / divisor, with a number or one for each of axis 0."""

    offset: float | tuple[float, ...] = field(SHIFT)
    divisor: float | tuple[float, ...] = field(DIVISOR)


NORMALISATION = Struct(Normalisation, name="normalisation", description="x = (raw - offset) / divisor.")


@record(frozen=True)
class Observation(Record):
    """One observation x as the encoder takes it: [batch, *shape], float32 or int64.

    `range` bounds its values, and is None where any finite number is valid. `axes` names the axes of `shape`. `dynamic`
    holds, by name, the axes that may have other sizes than those in `shape`.
    """

    name: str = field(TENSOR)
    shape: tuple[int, ...] = field(SHAPE)
    axes: tuple[str, ...] = field(AXES)
    range: tuple[float, float] | None = field(RANGE, default=None, required=True)
    normalisation: Normalisation | None = field(NORMALISATION, default=None)
    dtype: str = field(DTYPE, default="float32", required=True)
    dynamic: Mapping[str, Sizes] = field(DYNAMIC, default_factory=dict)


OBSERVATION = Struct(Observation, name="observation")


@record(frozen=True)
class Condition(Record):
    """An input of the encoder, the decoder or both beside x or z: [batch, *shape], float32 or int64.

    `classes` names the values 0, 1, … of an int64 condition of shape (); `range` bounds the values of any other.
    """

    name: str = field(TENSOR)
    shape: tuple[int, ...] = field(ANY_SHAPE)
    dtype: str = field(DTYPE, default="float32", required=True)
    classes: tuple[str, ...] | None = field(CLASSES, default=None)
    range: tuple[float, float] | None = field(RANGE, default=None)
    components: tuple[str, ...] = field(COMPONENT_NAMES, default=COMPONENTS, required=True)


CONDITIONS = List(Struct(Condition, name="condition"), "a list of at most 64 conditions", max=64)


@record(frozen=True)
class LatentPrior(Record):
    """The prior p(z) of one latent.

    Kinds: "normal", the standard normal; "mixture", fitted to the posterior means of real data; "sphere", uniform on
    the unit sphere; "none", which cannot be sampled, and `reason` says why.

    A mixture has `components` normal distributions with a "diagonal" or "full" `covariance`. The file `file` holds
    their parameters. `assumed` says that a standard normal was neither stated nor found in the model's own sampler.
    """

    kind: str = field(Choice("normal", "mixture", "sphere", "none", open=True), default="normal", required=True)
    file: str | None = field(FILE, default=None, required=("mixture",))
    components: int | None = field(Integer(1, 4096), default=None, required=("mixture",))
    covariance: str | None = field(Choice("diagonal", "full"), default=None, required=("mixture",))
    reason: str | None = field(TEXT, default=None, optional=("none",))
    assumed: bool = field(Flag(), default=False, optional=("normal",))


PRIOR = Struct(LatentPrior, name="prior")


@record(frozen=True)
class LatentPosterior(Record):
    """The posterior q(z|x) of one latent.

    Kinds: "normal", diagonal, with the encoder's outputs `mu`, `logvar` and `std` as its parameters; "codes", where the
    encoder's output `value` holds integers below `codebook`; "none", where the encoder's output `value` is the latent,
    and `reason` says why there is no distribution. Without `value` the latent is noise that the decoder takes and
    nothing infers.

    `noise` names the encoder's input for the posterior noise of this latent, if other outputs depend on its sample.
    """

    kind: str = field(Choice("normal", "codes", "none", open=True), default="normal", required=True)
    mu: str | None = field(TENSOR, default=None, required=("normal",))
    logvar: str | None = field(TENSOR, default=None, required=("normal",))
    std: str | None = field(TENSOR, default=None, required=("normal",))
    value: str | None = field(TENSOR, default=None, required=("codes",), optional=("none",))
    codebook: int | None = field(SIZE, default=None, required=("codes",))
    noise: str | None = field(TENSOR, default=None, optional=("normal",))
    reason: str | None = field(TEXT, default=None, optional=("none",))

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the encoder's outputs."""
        if self.kind == "normal":
            return tuple(name for name in (self.mu, self.logvar, self.std) if name)
        return (self.value,) if self.value else ()


POSTERIOR = Struct(LatentPosterior, name="posterior")


@record(frozen=True)
class Latent(Record):
    """One latent z: [batch, *shape], float32, or int64 where the posterior's kind is "codes".

    `axes` names the axes of `shape`, if they have names. `dynamic` holds, by name, the axes that may have other sizes.
    Models that were trained on these latents take (z - shift) · scale. A tuple has a number for each index of axis 0 of
    the shape.
    """

    name: str = field(TENSOR)
    shape: tuple[int, ...] = field(SHAPE)
    posterior: LatentPosterior = field(
        POSTERIOR, default=LatentPosterior("normal", "mu", "logvar", "std"), required=True
    )
    prior: LatentPrior = field(PRIOR, default=LatentPrior(), required=True)
    dtype: str = field(DTYPE, default="float32", required=True)
    axes: tuple[str, ...] = field(AXES, default=())
    dynamic: Mapping[str, Sizes] = field(DYNAMIC, default_factory=dict)
    scale: float | tuple[float, ...] = field(SCALE, default=1.0)
    shift: float | tuple[float, ...] = field(SHIFT, default=0.0)


LATENTS = List(Struct(Latent, name="latent"), "a list of 1 to 64 latents", min=1, max=64)


@record(frozen=True)
class Output(Record):
    """A further output of the decoder, float32 [batch, *shape]; an axis named like a dynamic one has its size."""

    name: str = field(TENSOR)
    shape: tuple[int, ...] = field(ANY_SHAPE)
    axes: tuple[str, ...] = field(AXES, default=())


OUTPUTS = List(Struct(Output, name="output"), "a list of at most 64 outputs", max=64)


@record(frozen=True)
class Likelihood(Record):
    """The likelihood p(x|z): its kind, and the decoder's outputs that are its parameters.

    `mean` names the output in data space, `logits` the one before the sigmoid. `scale` is one number in units of x;
    `scale_output` names the output that holds a scale for each value of x instead. With the kind "none" only `mean`,
    the first output, is known, and `reason` may say why. `shape` and `axes` are given if `mean` has others than x:
    those of x and an axis of classes behind them, where x is a class. `outputs` lists the decoder's further outputs.
    """

    kind: str = field(Choice(*KINDS, "none", open=True))
    mean: str = field(TENSOR, default="x", required=True)
    logits: str | None = field(TENSOR, default=None, optional=WITH_LOGITS)
    scale: float | None = field(POSITIVE, default=None, required=WITH_SCALE, unless="scale_output")
    scale_output: str | None = field(TENSOR, default=None, optional=WITH_SCALE)
    shape: tuple[int, ...] | None = field(SHAPE, default=None)
    axes: tuple[str, ...] = field(AXES, default=())
    outputs: tuple[Output, ...] = field(OUTPUTS, default=())
    reason: str | None = field(TEXT, default=None, optional=("none",))

    @property
    def has_classes(self) -> bool:
        """Whether x is the number of a class, and the decoder's answer has an axis of classes, the last one."""
        return self.kind in KINDS and KINDS[self.kind].classes


LIKELIHOOD = Struct(Likelihood, name="likelihood")


@record(frozen=True)
class Golden(Record):
    """The golden vectors: `n` observations in `file`, and `n` latents of the prior, drawn with vnoise-1 from `seed`."""

    file: str = field(FILE)
    seed: int = field(Integer(0, 2**53 - 1))
    n: int = field(Integer(1, 2**20))


@record(frozen=True)
class Quality(Record):
    """The loss of quality of a variant against fp32 of the same component, with the other component in fp32.

    `method` says how the variant was made; `size` is its file's number of bytes. `psnr`, in dB, is 10 · log10(peak² /
    mean squared difference) of the decoder's mean or the encoder's mu, and None if no number differs. `elbo_change` is
    the mean change of the ELBO in nats per observation, negative for a loss; it is None if there is no ELBO, and
    `reason` says why. `measured` names the data and their number. `calibration` names the data that gave the ranges of
    numbers between layers, if the method needs them. `speed` is that of one thread of the machine that exported.
    """

    method: str = field(TEXT)
    size: int = field(Integer(1, 2**53 - 1))
    psnr: float | None = field(Nullable(NUMBER))
    peak: float = field(POSITIVE)
    elbo_change: float | None = field(Nullable(NUMBER))
    measured: str = field(TEXT)
    calibration: str | None = field(TEXT, default=None)
    reason: str | None = field(TEXT, default=None)
    speed: Mapping[str, float] = field(SPEED, default_factory=dict)


QUALITY = Struct(Quality, name="quality")


@record(frozen=True)
class Refusal(Record):
    """A variant or a format that an export left out of a component, with the reason."""

    component: str = field(COMPONENT)
    variant: str = field(NAME)
    reason: str = field(TEXT)


@record(frozen=True)
class Variant(Record):
    """One graph: a precision or format of a component.

    `exporter` names the tool that made the graph. `data` names the file beside it that holds its weights, if they are
    too large for the graph's own file. `tolerance` bounds, per output, the absolute difference between this machine's
    answer to the golden vectors and the stored one. `error` is the largest absolute difference between the stored
    answer and PyTorch's. `quality` is given if the graph is meant to differ from fp32, `stream` for latents over time.
    """

    component: str
    name: str
    folder: str
    file: str
    executor: str
    precision: str = field(TEXT)
    tolerance: Mapping[str, float] = field(NUMBERS)
    error: Mapping[str, float] = field(NUMBERS)
    ep: str | None = None
    device: str | None = None
    exporter: str | None = field(TEXT, default=None)
    data: str | None = field(FILE, default=None)
    quality: Quality | None = field(QUALITY, default=None)
    stream: Stream | None = field(Later("chunks", "STREAM"), default=None)

    @property
    def path(self) -> str:
        """The path of the graph file in the bundle, with forward slashes."""
        return f"{self.folder}/{self.file}"

    @property
    def paths(self) -> list[str]:
        """The paths of all files: the graph, its weights if they are elsewhere, and the graph for chunks."""
        data = self.data and f"{self.folder}/{self.data}"
        return [path for path in (self.path, data, self.stream_path) if path]

    @property
    def stream_path(self) -> str | None:
        """The path of the graph for chunks of latents, or None without one."""
        return f"{self.folder}/{self.stream.file}" if self.stream and self.stream.file else None


@record(frozen=True)
class Tiles(Record):
    """How a component can be divided along dynamic axes into tiles that give the values of the undivided array.

    `halo` is its receptive field, by axis: how many values of the latent on either side of one an answer depends on.
    Borders of tiles are multiples of the latent's `step`. Where the component cannot be divided, `halo` is empty
    and `reason` says why.
    """

    component: str = field(COMPONENT)
    halo: Mapping[str, int] = field(HALO, default_factory=dict)
    reason: str | None = field(TEXT, default=None)


TILES = List(Struct(Tiles, name="tiles"), "a list of at most 2 objects", max=2)


@record(frozen=True, kw_only=True)
class Signature(Record):
    """The inputs and outputs of a VAE's two graphs, and their meaning.

    `batch_of_one` lists the components whose graphs take one row: a reader runs a batch row by row.
    """

    observation: Observation = field(OBSERVATION)
    conditions: tuple[Condition, ...] = field(CONDITIONS, default=())
    latents: tuple[Latent, ...] = field(LATENTS)
    likelihood: Likelihood = field(LIKELIHOOD)
    tiles: tuple[Tiles, ...] = field(TILES, default=())
    # Bundles without a table start without its module.
    table: tuple[Column, ...] = field(List(Later("columns", "COLUMN"), "a list of columns"), default=())
    batch_of_one: tuple[str, ...] = field(COMPONENT_NAMES, default=())

    @property
    def latent(self) -> Latent:
        """The first latent; most VAEs have no other."""
        return self.latents[0]

    def inputs(self, component: str) -> tuple[TensorSpec, ...]:
        """List a component's inputs: x or the latents, then its conditions, then the encoder's noise."""
        conditions = tuple(
            TensorSpec(condition.name, condition.dtype, condition.shape)
            for condition in self.conditions
            if component in condition.components
        )
        if component == "encoder":
            noises = [(latent.posterior.noise, latent) for latent in self.latents]
            drawn = (_tensor(noise, "float32", latent) for noise, latent in noises if noise)
            return (_tensor(self.observation.name, self.observation.dtype, self.observation), *conditions, *drawn)
        return (*(_tensor(latent.name, latent.dtype, latent) for latent in self.latents), *conditions)

    def outputs(self, component: str) -> tuple[TensorSpec, ...]:
        """List a component's outputs: the posteriors' parameters; or mean, logits, scale and further outputs."""
        if component == "encoder":
            return tuple(
                _tensor(name, latent.dtype, latent) for latent in self.latents for name in latent.posterior.outputs
            )
        likelihood = self.likelihood
        names = [name for name in (likelihood.mean, likelihood.logits, likelihood.scale_output) if name]
        dynamic = {
            **self.observation.dynamic,
            **{axis: s for latent in self.latents for axis, s in latent.dynamic.items()},
        }
        if likelihood.shape is None:
            own = tuple(_tensor(name, "float32", self.observation) for name in names)
        else:
            own = tuple(
                TensorSpec(name, "float32", likelihood.shape, _dynamic(likelihood.axes, dynamic)) for name in names
            )
        further = (TensorSpec(o.name, "float32", o.shape, _dynamic(o.axes, dynamic)) for o in likelihood.outputs)
        return (*own, *further)


def _tensor(name: str, dtype: str, part: Observation | Latent) -> TensorSpec:
    return TensorSpec(name, dtype, part.shape, _dynamic(part.axes, part.dynamic))


def _dynamic(axes: tuple[str, ...], dynamic: Mapping[str, Sizes]) -> frozenset[int]:
    return frozenset(index for index, axis in enumerate(axes) if axis in dynamic)


@record(frozen=True, kw_only=True)
class Header(Record):
    """The version of the format, the reader to install, and the texts for people."""

    format_version: str = field(VERSION, default=FORMAT_VERSION, required=True)
    reader: str | None = field(READER, default=None)
    name: str = field(TEXT)
    description: str = field(TEXT, default="")
    license: str | None = field(TEXT, default=None)


@record(frozen=True, kw_only=True)
class Manifest(Signature, Header):
    """The description of a bundle. Variants stand in the order of declaration: the first is the default.

    In a packed bundle `packed_from` is the digest, "sha256:…", of the original bundle, and a component that was left
    out has no variants. `package_version` is dotted integers, such as "1.2.0".
    """

    package_name: str
    package_version: str | None = None
    encoder: Mapping[str, Variant] = field(default_factory=dict)
    decoder: Mapping[str, Variant] = field(default_factory=dict)
    noise: str = field(Choice(SPEC, open=True), default=SPEC, required=True)
    golden: Golden = field(Struct(Golden, name="golden"))
    scores: HeldOut | None = field(Later("held_out", "HELD_OUT"), default=None)
    refused: tuple[Refusal, ...] = field(List(Struct(Refusal, name="refusal")), default=())
    training: Mapping[str, Any] = field(FREE, default_factory=dict)
    metrics: Mapping[str, Any] = field(FREE, default_factory=dict)
    producer: Mapping[str, Any] = field(FREE, default_factory=dict)
    packed_from: str | None = field(DIGEST, default=None)

    @property
    def components(self) -> dict[str, Mapping[str, Variant]]:
        """The components of the bundle by name: both, unless one was left out by packing or by the export."""
        both = {"encoder": self.encoder, "decoder": self.decoder}
        return {component: variants for component, variants in both.items() if variants}

    @property
    def variants(self) -> list[Variant]:
        """All variants, the encoder's first."""
        return [*self.encoder.values(), *self.decoder.values()]
