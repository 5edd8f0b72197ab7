"""The configurations of a model, its training and its data: frozen dataclasses that are valid once they exist.

Each field carries its rule. A value that breaks one is refused when the configuration is made, all problems in one
message, each with its field.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Self

from vae_runtime.errors import InputError, one_line
from vae_runtime.likelihood import KINDS

# Words for the allowed values, and a function that returns a value in its canonical type, or None if it is not allowed.
_Rule = tuple[str, Callable[[Any], Any]]


# Far above what any machine trains, far below what numpy and PyTorch overflow at.
_MAX_INTEGER = 2**24
# With these, no layer has more weights than PyTorch can count.
_MAX_WIDTH, _MAX_VALUES, _MAX_LAYERS, _MAX_AXES = 2**16, 2**44, 64, 16


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


def _integers(default: tuple[int, ...], high: int, count: int) -> Any:
    def of(value: Any) -> tuple[int, ...] | None:
        fits = (
            isinstance(value, list | tuple)
            and len(value) <= count
            and all(_is_integer(item, 1, high) for item in value)
        )
        return tuple(value) if fits else None

    return field(default=default, metadata={"rule": (f"a list of at most {count} integers from 1 to {high}", of)})


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


def _text(default: str) -> Any:
    rule: _Rule = ("a text that is not empty", lambda value: value if isinstance(value, str) and value else None)
    return field(default=default, metadata={"rule": rule})


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
    """`mlp` takes any shape; `conv` takes [C, H, W] with 1–4 channels, H and W multiples of 4."""
    observation_shape: tuple[int, ...] = _integers((), _MAX_INTEGER, _MAX_AXES)
    """Shape of one observation, without the batch; empty: that of the training data."""
    latent: int = _integer(16, low=1, high=_MAX_WIDTH)
    """Number of latent dimensions."""
    hidden: tuple[int, ...] = _integers((128, 64), _MAX_WIDTH, _MAX_LAYERS)
    """Widths of the dense layers between observation (or feature maps) and latent; the decoder mirrors them."""
    channels: tuple[int, ...] = _integers((32, 64), _MAX_WIDTH, _MAX_LAYERS)
    """conv: channels at half and at a quarter of the resolution."""
    encoder_blocks: int = _integer(1, low=0, high=_MAX_LAYERS)
    """conv: residual blocks at each of the two resolutions, in the encoder."""
    decoder_blocks: int = _integer(1, low=0, high=_MAX_LAYERS)
    """conv: residual blocks at each of the two resolutions, in the decoder."""
    activation: str = _choice("relu", "relu", "elu", "silu")
    """The nonlinearity after each hidden layer."""
    likelihood: str = _choice("bernoulli", *KINDS)
    """p(x|z); its negative logarithm is the reconstruction loss: BCE, MSE, MAE or the Poisson loss, with constants."""
    scale: float = _number(1.0, low=0, open_low=True)
    """gaussian: the standard deviation; laplace: the scale b; other kinds have none and ignore it."""
    learn_scale: bool = _flag(False)
    """Fit the scale (one number) with the weights, starting from `scale`."""

    def _conflicts(self) -> list[str]:
        problems = []
        wide = max(self.channels, default=1) if self.architecture == "conv" else 1
        values = math.prod(self.observation_shape) * wide
        if values > _MAX_VALUES:
            problems.append(f"model.observation_shape: expected layers of at most {_MAX_VALUES} values, got {values}")
        if self.learn_scale and not KINDS[self.likelihood].scale:
            problems.append(f"model.learn_scale: a {self.likelihood} likelihood has no scale; leave it out")
        if self.architecture == "conv":
            if len(self.channels) != 2:
                problems.append(f"model.channels: expected two numbers, got {list(self.channels)}")
            shape = self.observation_shape
            if shape and not (len(shape) == 3 and shape[0] <= 4 and shape[1] % 4 == shape[2] % 4 == 0):
                problems.append(
                    "model.observation_shape: conv takes [C, H, W] with 1–4 channels, H and W multiples of 4, "
                    f"got {list(shape)}; choose architecture mlp, or crop or pad the images"
                )
        return problems


@dataclass(frozen=True)
class TrainConfig(_Config):
    """How the weights are fitted: Adam on the negative bound, in nats per observation."""

    place: ClassVar[str] = "train"

    epochs: int = _integer(50, low=1)
    """Passes over the training data, at most."""
    batch_size: int = _integer(128, low=1)
    """Observations per step."""
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
    """`stochastic` draws each value anew each epoch as 1 with its own grey value as probability."""
    seed: int = _integer(0, low=0, high=2**63 - 1)
    """Decides initial weights, order, binarisation and noise."""
    threads: int = _integer(0, low=0, high=1024)
    """PyTorch's threads; 0: as many as PyTorch chooses. Bit-identical runs need the same number."""

    def _conflicts(self) -> list[str]:
        problems = []
        if self.importance_samples > 1 and self.free_bits > 0:
            problems.append("train.free_bits: the importance-weighted bound has no KL per dimension; leave it 0")
        return problems


@dataclass(frozen=True)
class DataConfig(_Config):
    """Where observations come from and how they are split."""

    place: ClassVar[str] = "data"

    source: str = _text("digits")
    """`digits`, a folder with MNIST's IDX files, a .npy file, or a folder of images."""
    seed: int = _integer(0, low=0, high=2**63 - 1)
    """Decides the split."""
    validation_fraction: float = _number(0.1, low=0, high=0.9)
    """Share of the training data kept for validation."""
    test_fraction: float = _number(0.1, low=0, high=0.9)
    """Share of all data kept for the test; IDX folders have a test set of their own."""

    def _conflicts(self) -> list[str]:
        try:
            self.source.encode()
        except UnicodeEncodeError:  # bytes of a file name that are no UTF-8, which config.json could not hold
            return [f"data.source: expected a name in UTF-8, got {self.source!r}; rename the file or folder"]
        return []


class Recipe(NamedTuple):
    """The three configurations of one model that ships."""

    model: ModelConfig
    train: TrainConfig
    data: DataConfig


RECIPES = {
    "digits": Recipe(
        ModelConfig(observation_shape=(1, 8, 8), latent=8, activation="silu"),
        TrainConfig(epochs=200, batch_size=64, learning_rate=2e-3, binarise="none", patience=40, threads=1),
        DataConfig("digits"),
    ),
    "mnist": Recipe(
        ModelConfig(
            architecture="conv", observation_shape=(1, 28, 28), latent=32, hidden=(96,), channels=(32, 64),
            activation="silu",
        ),
        TrainConfig(
            epochs=38, learning_rate=2.5e-3, final_learning_rate=0.01, kl_warmup_epochs=2, importance_samples=5,
            importance_start=31, gradient_clip=200, binarise="stochastic", threads=2,
        ),
        DataConfig("mnist", validation_fraction=0.025),
    ),
}  # fmt: skip
"""The configurations of the models that ship; the source of `mnist` is replaced by the folder with the IDX files."""
