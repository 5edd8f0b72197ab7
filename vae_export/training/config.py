"""The configurations of a model, its training and its data: frozen dataclasses that are valid once they exist.

Each field carries its rule. A value that breaks one is refused when the configuration is made, all problems in one
message, each with its field.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self

from vae_runtime.errors import InputError, one_line
from vae_runtime.likelihood import KINDS

from ..understand.declaration import RESERVED

# Words for the allowed values, and a function that returns a value in its canonical type, or None if it is not allowed.
_Rule = tuple[str, Callable[[Any], Any]]


# Far above what any machine trains, far below what numpy and PyTorch overflow at.
_MAX_INTEGER = 2**24
# With these, no layer has more weights than PyTorch can count.
MAX_CLASSES = 2**16
_MAX_WIDTH, _MAX_VALUES, _MAX_LAYERS, _MAX_AXES, _MAX_KERNEL, _MAX_KERNELS = 2**16, 2**44, 64, 16, 63, 8
MIN_GROUP = 4
"""Channels that a group normalization takes together, at least: fewer may be a single number, which it makes 0."""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 99 else f"{text[:98]}…"


def _is_integer(value: Any, low: int, high: int = _MAX_INTEGER) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _integer(default: int, low: int, high: int = _MAX_INTEGER) -> Any:
    rule: _Rule = (
        f"an integer from {low} to {high}",
        lambda value: value if _is_integer(value, low, high) else None,
    )
    return field(default=default, metadata={"rule": rule})


def _integers(default: tuple[int, ...], high: int, count: int, empty: str = "none") -> Any:
    """`empty` says what an empty list stands for."""

    def of(value: Any) -> tuple[int, ...] | None:
        fits = (
            isinstance(value, list | tuple)
            and len(value) <= count
            and all(_is_integer(item, 1, high) for item in value)
        )
        return tuple(value) if fits else None

    rule: _Rule = (f"a list of at most {count} integers from 1 to {high}", of)
    return field(default=default, metadata={"rule": rule, "empty": empty})


def _number(default: float, low: float, high: float = math.inf, *, open_low: bool = False) -> Any:
    def of(value: Any) -> float | None:
        # Not math.isfinite, which fails for an integer that no float can hold.
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= sys.float_info.max:
            return None
        return float(value) if low <= value <= high and not (open_low and value == low) else None

    bounds = f"above {low:g}" if open_low else f"of at least {low:g}"
    words = f"a number {bounds}" + (f" and at most {high:g}" if high < math.inf else "")
    return field(default=default, metadata={"rule": (words, of)})


def _choice(default: str, *options: str) -> Any:
    rule: _Rule = (f"one of {', '.join(options)}", lambda value: value if value in options else None)
    return field(default=default, metadata={"rule": rule})


def _flag(default: bool) -> Any:
    rule: _Rule = ("true or false", lambda value: value if isinstance(value, bool) else None)
    return field(default=default, metadata={"rule": rule})


def _device(default: str) -> Any:
    def of(value: Any) -> str | None:
        return value if isinstance(value, str) and re.fullmatch(r"cpu|mps|auto|cuda(:\d{1,3})?", value) else None

    return field(default=default, metadata={"rule": ("one of cpu, cuda, cuda:N, mps, auto", of)})


def _text(default: str) -> Any:
    rule: _Rule = ("a text that is not empty", lambda value: value if isinstance(value, str) and value else None)
    return field(default=default, metadata={"rule": rule})


def _conditions() -> Any:
    shape = _integers((), _MAX_INTEGER, _MAX_AXES).metadata["rule"][1]

    def of_one(name: Any, kind: Any) -> dict[str, Any] | None:
        named = isinstance(name, str) and name.isidentifier() and name.isascii() and name not in RESERVED
        if not named or not isinstance(kind, Mapping) or len(kind) != 1:
            return None
        if _is_integer(kind.get("classes"), 1, _MAX_WIDTH):
            return dict(kind)
        sizes = shape(kind.get("shape"))
        return None if sizes is None or math.prod(sizes) > _MAX_INTEGER else {"shape": list(sizes)}

    def of(value: Any) -> dict[str, Any] | None:
        if not isinstance(value, Mapping) or len(value) > _MAX_LAYERS:
            return None
        # Sorted: the order of the names is that of the layers.
        kinds = {name: of_one(name, value[name]) for name in sorted(value, key=str)}
        return None if None in kinds.values() else kinds

    words = (
        f'an object of at most {_MAX_LAYERS} names, each with {{"classes": K}}, K from 1 to {_MAX_WIDTH}, or '
        f'{{"shape": [sizes]}}; not named {", ".join(sorted(RESERVED))}'
    )
    return field(default_factory=dict, hash=False, metadata={"rule": (words, of)})


def _name(words: str) -> Any:
    """A text that may be empty, which stands for nothing."""
    rule: _Rule = (words, lambda value: value if isinstance(value, str) else None)
    return field(default="", metadata={"rule": rule, "empty": "none"})


def _texts(words: str) -> Any:
    def of(value: Any) -> tuple[str, ...] | None:
        fits = isinstance(value, list | tuple) and all(isinstance(item, str) and item for item in value)
        return tuple(value) if fits else None

    return field(default=(), metadata={"rule": (words, of), "item": str, "empty": "none"})


def _not_utf8(place: str, name: str) -> list[str]:
    """Return the problem of a file name whose bytes are no UTF-8, which config.json could not hold."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return [f"{place}: expected a name in UTF-8, got {name!r}; rename the file or folder"]
    return []


@dataclass(frozen=True)
class _Config:
    place: ClassVar[str]
    """What messages call it."""

    def __post_init__(self) -> None:
        problems = []
        for item in dataclasses.fields(self):
            expected, of = item.metadata["rule"]
            value = getattr(self, item.name)
            canonical = of(value)
            if canonical is None:
                problems.append(f"{self.place}.{item.name}: expected {expected}, got {_shown(value)}")
            else:
                object.__setattr__(self, item.name, canonical)
        problems = problems or self._conflicts()
        if problems:
            raise InputError("; ".join(problems))

    def _conflicts(self) -> list[str]:
        """Return the problems between fields that are each valid alone."""
        return []

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, of which `from_json` makes an equal configuration."""
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in dataclasses.asdict(self).items()
        }

    @classmethod
    def from_json(cls, fields: object) -> Self:
        """Return the configuration of a JSON object; a field that is left out takes its default.

        Raises:
            InputError: not an object, an unknown field, or a value of the wrong type or out of range.
        """
        if not isinstance(fields, Mapping):
            raise InputError(f"{cls.place}: expected an object, got {_shown(fields)}")
        known = [item.name for item in dataclasses.fields(cls)]
        unknown = [name for name in fields if name not in known]
        if unknown:
            raise InputError(
                f"{cls.place}.{one_line(unknown[0])[:99]}: no such field; the fields are {', '.join(known)}"
            )
        return cls(**fields)


@dataclass(frozen=True)
class ModelConfig(_Config):
    """A VAE with one latent vector, a standard normal prior and a diagonal normal posterior."""

    place: ClassVar[str] = "model"

    architecture: str = _choice("mlp", "mlp", "conv")
    """`mlp` takes any shape; `conv` takes [C, L], [C, H, W] or [C, D, H, W] of any sizes."""
    observation_shape: tuple[int, ...] = _integers((), _MAX_INTEGER, _MAX_AXES, "the shape of the data")
    """Shape of one observation, without the batch; empty: that of the training data."""
    latent: int = _integer(16, low=1, high=_MAX_WIDTH)
    """Number of latent dimensions."""
    hidden: tuple[int, ...] = _integers((128, 64), _MAX_WIDTH, _MAX_LAYERS)
    """Widths of the dense layers between observation (or feature maps) and latent; the decoder mirrors them."""
    channels: tuple[int, ...] = _integers((32, 64), _MAX_WIDTH, _MAX_LAYERS)
    """conv: channels of each level, which has half of the resolution of the level before it."""
    encoder_channels: tuple[int, ...] = _integers((), _MAX_WIDTH, _MAX_LAYERS, "those of --channels")
    """conv: channels of each level of the encoder, which may have more levels; empty: `channels`."""
    encoder_blocks: int = _integer(1, low=0, high=_MAX_LAYERS)
    """conv: residual blocks of each level of the encoder."""
    decoder_blocks: int = _integer(1, low=0, high=_MAX_LAYERS)
    """conv: residual blocks of each level of the decoder."""
    encoder_kernels: tuple[int, ...] = _integers((3, 1), _MAX_KERNEL, _MAX_KERNELS)
    """conv: the odd kernel sizes of the convolutions of a residual block, in the encoder."""
    decoder_kernels: tuple[int, ...] = _integers((3, 1), _MAX_KERNEL, _MAX_KERNELS)
    """conv: the odd kernel sizes of the convolutions of a residual block, in the decoder."""
    encoder_attention: int = _integer(0, low=0, high=_MAX_LAYERS)
    """conv: levels of the encoder, from the lowest resolution on, whose blocks self-attention follows."""
    decoder_attention: int = _integer(0, low=0, high=_MAX_LAYERS)
    """conv: the same of the decoder."""
    norm: str = _choice("none", "none", "group")
    """conv: the normalization before each activation; `group` takes some channels of one observation together."""
    activation: str = _choice("relu", "relu", "elu", "silu")
    """The nonlinearity after each hidden layer."""
    likelihood: str = _choice("bernoulli", *KINDS)
    """p(x|z); its negative logarithm is the reconstruction loss: BCE, MSE, MAE or the Poisson loss, with constants;
    for 8-bit values that of their levels (logistic), for classes the cross-entropy (categorical)."""
    classes: int = _integer(0, low=0, high=MAX_CLASSES)
    """categorical: the number of classes; 0: one more than the largest of the training data."""
    scale: float = _number(1.0, low=0, open_low=True)
    """gaussian: the standard deviation; laplace: the scale b; logistic: s; other kinds have none and ignore it."""
    learn_scale: bool = _flag(False)
    """Fit the scale (one number) with the weights, starting from `scale`."""
    conditions: Mapping[str, Mapping[str, Any]] = _conditions()
    """What encoder and decoder take beside x and z, by name: {"classes": K} for integers below K, {"shape": […]} for
    numbers; those of the training data."""

    @property
    def network_shape(self) -> tuple[int, ...]:
        """The shape that the networks take and give: the observation's, or one with a number for each class.

        These are behind the observation in `mlp`, and channels in `conv`: those of the first channel, of the second, ….
        """
        if not self.classes:
            return self.observation_shape
        if self.architecture == "mlp":
            return *self.observation_shape, self.classes
        return self.observation_shape[0] * self.classes, *self.observation_shape[1:]

    def _conflicts(self) -> list[str]:
        problems = []
        levels = (*self.channels, *self.encoder_channels) if self.architecture == "conv" else ()
        wide = max(levels, default=1)
        values = math.prod(self.observation_shape) * wide * max(1, self.classes)
        if values > _MAX_VALUES:
            problems.append(f"model.observation_shape: expected layers of at most {_MAX_VALUES} values, got {values}")
        if self.learn_scale and not KINDS[self.likelihood].scale:
            problems.append(f"model.learn_scale: a {self.likelihood} likelihood has no scale; leave it out")
        if self.classes and not KINDS[self.likelihood].classes:
            problems.append(f"model.classes: a {self.likelihood} likelihood has no classes; leave it out")
        if self.classes == 1:
            problems.append("model.classes: expected at least 2, or 0 for those of the data, got 1")
        if self.architecture == "conv":
            problems += self._conv_conflicts()
        return problems

    def _conv_conflicts(self) -> list[str]:
        problems = []
        if not self.channels:
            problems.append("model.channels: expected a number for each level, got none")
        for name in ("encoder_kernels", "decoder_kernels"):
            kernels = getattr(self, name)
            if not kernels or not all(size % 2 for size in kernels):
                problems.append(f"model.{name}: expected odd sizes, at least one, got {list(kernels)}")
        for name in ("encoder_attention", "decoder_attention"):
            levels = len(self.encoder_channels or self.channels) if name[0] == "e" else len(self.channels)
            if getattr(self, name) > levels:
                problems.append(f"model.{name}: expected at most the {levels} levels, got {getattr(self, name)}")
        narrow = min((*self.channels, *self.encoder_channels), default=MIN_GROUP)
        if self.norm == "group" and narrow < MIN_GROUP:
            problems.append(f"model.norm: group takes levels of at least {MIN_GROUP} channels, got {narrow}")
        shape = self.observation_shape
        if shape and not 2 <= len(shape) <= 4:
            problems.append(
                f"model.observation_shape: conv takes [C, L], [C, H, W] or [C, D, H, W], got {list(shape)}; choose "
                "architecture mlp, or add an axis of size 1 for the channels"
            )
        return problems


@dataclass(frozen=True)
class TrainConfig(_Config):
    """How the weights are fitted: Adam, or AdamW, on the negative bound, in nats per observation."""

    place: ClassVar[str] = "train"
    machine: ClassVar[tuple[str, ...]] = ("device", "compile")
    """Fields in which a run may change when it goes on: they say where and how the same is computed."""

    epochs: int = _integer(50, low=1)
    """Passes over the training data, at most."""
    batch_size: int = _integer(128, low=1)
    """Observations per step, over all processes."""
    learning_rate: float = _number(1e-3, low=0, open_low=True)
    """Adam's step size at the start."""
    final_learning_rate: float = _number(0.02, low=0, high=1)
    """The fraction of `learning_rate` that a half cosine falls to at the last step; 1 keeps it constant."""
    beta: float = _number(1.0, low=0)
    """Weight of the KL term; 1 is the ELBO."""
    kl_warmup_epochs: int = _integer(0, low=0)
    """Epochs over which the weight of the KL term rises linearly from 0 to `beta`."""
    free_bits: float = _number(0.0, low=0)
    """Nats of KL per latent dimension that cost nothing more."""
    importance_samples: int = _integer(1, low=1)
    """Samples k of the importance-weighted bound that is trained; 1 trains the ELBO."""
    importance_start: int = _integer(1, low=1)
    """First epoch (from 1) that trains the importance-weighted bound; those before train the ELBO."""
    patience: int = _integer(0, low=0)
    """Epochs without a better validation bound before training stops; 0: never stops early."""
    gradient_clip: float = _number(0.0, low=0)
    """Largest norm of the gradient; 0: not clipped."""
    binarise: str = _choice("none", "none", "stochastic", "threshold")
    """`stochastic` draws each value anew each epoch as 1 with its own gray value as probability."""
    seed: int = _integer(0, low=0, high=2**63 - 1)
    """Decides initial weights, order, binarization and noise."""
    threads: int = _integer(0, low=0, high=1024)
    """PyTorch's threads in each process; 0: as many as PyTorch chooses. Bit-identical runs need the same number."""
    device: str = _device("cpu")
    """`cuda:1` is the second GPU, `auto` a GPU where there is one, else the CPU. A missing device is refused."""
    precision: str = _choice("float32", "float32", "bfloat16", "float16")
    """What the networks compute in. Weights, the objective and validation are float32 always."""
    accumulate: int = _integer(1, low=1)
    """Parts that the batch of a step is computed in, one after the other, to save memory; the result is the same."""
    compile: bool = _flag(False)
    """Compile a step by `torch.compile`."""
    ema: float = _number(0.0, low=0, high=0.999999)
    """Decay of an average of the weights over the steps, which is validated and kept in their place; 0: no average."""
    weight_decay: float = _number(0.0, low=0)
    """AdamW's, of matrices and kernels: a step takes this times the learning rate of each from it; 0: none."""
    start_from: str = _name("the folder of a finished run of the same model")
    """Whose weights the training begins with; empty: the seed draws them."""

    def _conflicts(self) -> list[str]:
        problems = _not_utf8("train.start_from", self.start_from)
        if self.weight_decay * self.learning_rate > 1:
            problems.append(
                f"train.weight_decay: expected at most 1 / learning_rate, {1 / self.learning_rate:g}, got "
                f"{self.weight_decay:g}: a step would take more than all of a weight"
            )
        if self.importance_samples > 1 and self.free_bits > 0:
            problems.append("train.free_bits: the importance-weighted bound has no KL per dimension; leave it 0")
        return problems


@dataclass(frozen=True)
class DataConfig(_Config):
    """Where observations come from and how they are split."""

    place: ClassVar[str] = "data"

    source: str = _text("digits")
    """Where observations are: docs/training.md lists what it may name."""
    columns: tuple[str, ...] = _texts("names of columns")
    """Those that make the observation, of a table, of Parquet or of the Hub; none: all that are no condition."""
    conditions: tuple[str, ...] = _texts("names of conditions, as NAME or NAME=PLACE")
    """What the model is told beside x: `label`, a column, or for a .npy file NAME=C.npy with an array of rows."""
    labels: str = _name("NAME or NAME=PLACE of classes")
    """Classes that color the latent map of the report, and that the model is not told; empty: those of a condition."""
    normalise: str = _choice("unit", "unit", "none", "standard")
    """unit: 8-bit values to [0, 1], floats as they are; standard: by mean and deviation of each channel."""
    augment: str = _name("package.module:function")
    """Changes the observations of each batch of the training data: (x, generator) → x; empty: nothing does."""
    corrupt: str = _choice("refuse", "refuse", "skip")
    """What becomes of a row that cannot be read or holds NaN or infinity."""
    workers: int = _integer(1, low=1, high=1024)
    """Processes that read pictures; 1: this one. Their number changes no bit."""
    seed: int = _integer(0, low=0, high=2**63 - 1)
    """Decides the split."""
    validation_fraction: float = _number(0.1, low=0, high=0.9)
    """Share of the training data kept for validation, in expectation."""
    test_fraction: float = _number(0.1, low=0, high=0.9)
    """Share of all data kept for the test, in expectation; IDX folders have a test set of their own."""
    license: str = _name("the license of the data")
    """For the card of the bundle; that of known data sets is known."""

    def _conflicts(self) -> list[str]:
        problems = []
        for name, texts in (("source", (self.source,)), ("conditions", self.conditions), ("labels", (self.labels,))):
            for text in texts:
                problems += _not_utf8(f"data.{name}", text)
        if not (self.license or " ").isprintable():
            # It stands in the table and the card of the bundle.
            problems.append(f"data.license: expected printable text, got {self.license!r:.99}; write one line")
        names = list(self.places())
        for name in names:
            if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name) or name == "x":
                problems.append(
                    f"data.conditions: expected a name of letters, digits and '_' other than x, got {name!r:.99}; "
                    "write NAME=PLACE"
                )
        if len(names) < len(self._named()):
            problems.append(f"data.conditions: expected each name once, got {_shown(list(self._named()))}")
        return problems

    def places(self) -> dict[str, str]:
        """Return where each condition, and where the labels are, by their names."""
        parts = (text.partition("=") for text in self._named())
        return {name: place or name for name, _, place in parts}

    def _named(self) -> tuple[str, ...]:
        return (*self.conditions, self.labels) if self.labels else self.conditions


class Recipe(NamedTuple):
    """The three configurations of one model that ships."""

    model: ModelConfig
    train: TrainConfig
    data: DataConfig
    start: str | None = None
    """The recipe of the run whose weights it begins with."""


# The decoder decides the time of a sample: it is narrow and deep. The encoder is in no sample's way.
_MNIST = ModelConfig(
    architecture="conv", observation_shape=(1, 28, 28), latent=32, hidden=(256,), channels=(16, 32),
    encoder_channels=(32, 64), encoder_blocks=2, decoder_blocks=2, encoder_kernels=(3, 3), decoder_kernels=(3, 3),
    activation="silu",
)  # fmt: skip
_MNIST_DATA = DataConfig("mnist", validation_fraction=0.025)

RECIPES = {
    "digits": Recipe(
        ModelConfig(observation_shape=(1, 8, 8), latent=8, activation="silu"),
        TrainConfig(epochs=200, batch_size=64, learning_rate=2e-3, binarise="none", patience=40, threads=1),
        DataConfig("digits"),
    ),
    "mnist": Recipe(
        _MNIST,
        TrainConfig(
            epochs=300, learning_rate=2e-3, final_learning_rate=0.01, kl_warmup_epochs=2, gradient_clip=200,
            binarise="stochastic", threads=1, precision="bfloat16", ema=0.999,
        ),
        _MNIST_DATA,
    ),
    "mnist-tuned": Recipe(
        _MNIST,
        TrainConfig(
            epochs=60, learning_rate=1e-3, final_learning_rate=0.01, gradient_clip=200, binarise="stochastic", seed=1,
            threads=1, precision="bfloat16", ema=0.999, weight_decay=0.1,
        ),
        _MNIST_DATA,
        start="mnist",
    ),
    "mnist-weighted": Recipe(
        _MNIST,
        TrainConfig(
            epochs=3, learning_rate=3e-5, final_learning_rate=0.01, importance_samples=2, gradient_clip=200,
            binarise="stochastic", seed=2, threads=1, precision="bfloat16", ema=0.995,
        ),
        _MNIST_DATA,
        start="mnist-tuned",
    ),
}  # fmt: skip
"""The configurations of the models that ship.

Those of MNIST are three steps, each from the weights of the one before; their source is replaced by the folder with the
IDX files. The first overfits. The second does so less, by weight decay, which raises the ELBO of data that it was not
trained on. A short third one, by the importance-weighted bound, trades a part of that gain for log p(x).
"""
