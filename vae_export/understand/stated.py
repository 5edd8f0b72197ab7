"""Find what a model and its configuration state of its latents in numbers and words: a scale, and a prior.

They are attributes, buffers, and the fields of a configuration that the model holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from .reading import fields_of

# Where a model holds its settings.
_SETTINGS = ("config", "cfg", "hparams", "args", "opt", "_config")
# Fields that are there because another model supplies the latents, such as a diffusion model.
_SUPPLIED = (
    "scaling_factor", "shift_factor", "latents_mean", "latents_std", "use_quant_conv", "invert_scale_latents",
    "use_tiling", "use_slicing",
)  # fmt: skip
# Parts of a model that are there for the same reason.
_PARTS = (
    "quant_conv", "post_quant_conv", "quant_conv_mu", "encode_stage_2_inputs", "decode_stage_2_outputs",
    "enable_tiling",
)  # fmt: skip
# The same in other words, where they are numbers that change something.
_SIMILAR = re.compile(
    r"((latents?|z|vae)_(scales?|scalings?|shifts?|means?|stds?|sigmas?)|scal(e|ing)|shift)(_factors?)?", re.IGNORECASE
)
_NOT_ALONE = {"scale", "scaling", "shift"}
_FACTORS, _SHIFTS = ("scaling_factor", "scale_factor"), ("shift_factor",)
_MEANS, _STDS = ("latents_mean", "latent_mean", "z_mean"), ("latents_std", "latent_std", "z_std")
# Words, between dots, underscores and digits, that make a number with the word prior one of its distribution.
_MOMENTS = {"std", "stds", "sigma", "scale", "var", "variance", "mean", "means", "mu", "loc", "logvar", "logstd", "cov"}
_OF_A_PRIOR = re.compile(r"(p|pz|p_z)_(mu|mean|loc|std|sigma|scale|var|logvar|log_var|log_std)", re.IGNORECASE)
_KINDS = re.compile(r"(latent_)?prior(_(type|dist|distribution|name|kind|family))?|p_z|pz", re.IGNORECASE)
_STANDARD = re.compile(r"(normal|gauss(ian)?|standard|unit|isotropic|std|n\(0,1\)|n01|none|diag(onal)?|\s)+")
_DEPTH = 2


@dataclass(frozen=True)
class Setting:
    """One value that a model holds, and where."""

    name: str
    value: Any
    holder: Any
    """The object that has it as an attribute, or the mapping that has it as a field."""
    own: bool
    """Whether it is an attribute of the model, and no field of a configuration."""


def settings_of(owner: object) -> Iterator[Setting]:
    """Yield the attributes of a model that are no modules and no functions, then the fields of its configurations."""
    classes = [cls for cls in type(owner).__mro__ if not cls.__module__.startswith(("torch.", "builtins"))]
    values: dict[str, Any] = {name: value for cls in reversed(classes) for name, value in vars(cls).items()}
    values |= vars(owner) if hasattr(owner, "__dict__") else {}
    if isinstance(owner, nn.Module):
        values |= {**owner._parameters, **owner._buffers}
    for name, value in values.items():
        if not name.startswith("_") and not callable(value) and value is not None:
            yield Setting(name, value, owner, own=True)
    for name in _SETTINGS:
        yield from _fields(getattr(owner, name, None), _DEPTH)


def _fields(holder: Any, depth: int) -> Iterator[Setting]:
    """Yield the fields of a configuration, and those of the ones within."""
    if isinstance(holder, (nn.Module, Tensor, str)) or holder is None or depth == 0:
        return
    values = dict(holder) if isinstance(holder, Mapping) else _attributes(holder)
    for name, value in values.items():
        if not isinstance(name, str) or name.startswith("_") or value is None or _is_function(value):
            continue
        yield Setting(name, value, holder, own=False)
        yield from _fields(value, depth - 1)


def _attributes(holder: Any) -> dict[str, Any]:
    if isinstance(holder, (int, float, bool, list, tuple, np.ndarray)):
        return {}
    classes = [cls for cls in type(holder).__mro__ if cls is not object] if not isinstance(holder, type) else [holder]
    values = {name: value for cls in reversed(classes) for name, value in vars(cls).items()}
    return {**values, **getattr(holder, "__dict__", {})}


def _is_function(value: Any) -> bool:
    return callable(value) or isinstance(value, (property, classmethod, staticmethod))


def supplied(owner: object, sizes: Sequence[int]) -> Setting | str | None:
    """Return what says that another model supplies the latents: a setting, or the name of a part of the model.

    Args:
        owner: the model, or an object that holds it.
        sizes: how many numbers a scale for each channel, or for each number of a latent, has.
    """
    found = list(settings_of(owner))
    for name in _SUPPLIED:
        setting = next((setting for setting in found if setting.name == name), None)
        if setting is not None:
            return setting
    part = next((name for name in _PARTS if callable(getattr(owner, name, None))), None)
    return part or next((setting for setting in found if _is_similar(setting, sizes)), None)


def _is_similar(setting: Setting, sizes: Sequence[int]) -> bool:
    """Whether a setting is named as a scale or a shift of latents, and is one that changes something."""
    name = setting.name.lower()
    if not _SIMILAR.fullmatch(name) or name in _NOT_ALONE:
        return False
    numbers = numbers_in(setting.value)
    if numbers is None or numbers.size not in {1, *sizes} or bool(((numbers == 0) | (numbers == 1)).all()):
        return False
    # Whole numbers count pixels, such as those for each latent.
    return numbers.size > 1 or not float(numbers[0]).is_integer()


def has_direction(setting: Setting | str) -> bool:
    """Whether it is known which way a setting that `supplied` gave scales or shifts latents, if it does."""
    names = (*_SUPPLIED, *_FACTORS, *_SHIFTS, *_MEANS, *_STDS)
    return isinstance(setting, str) or setting.name.lower() in names


def scaling(
    owner: object, channels: int, is_read: Callable[[Setting], bool]
) -> tuple[float | tuple[float, ...], float | tuple[float, ...], str]:
    """Return the scale and the shift of the latents that other models take: one number, or one for each channel.

    The last item says what a bundle does not carry.

    Args:
        owner: the model, or an object that holds it.
        channels: of a latent.
        is_read: whether encode or decode reads a setting, which is then in the latents already.
    """
    known: dict[str, NDArray[np.float64]] = {}
    for setting in settings_of(owner):
        name = setting.name.lower()
        if name in known or name not in (*_FACTORS, *_SHIFTS, *_MEANS, *_STDS):
            continue
        numbers = numbers_in(setting.value)
        pixels = name == "scale_factor" and numbers is not None and bool((numbers % 1 == 0).all())
        if numbers is not None and numbers.size and not pixels and not is_read(setting):
            known[name] = numbers

    def of(names: Sequence[str], size: int) -> NDArray[np.float64] | None:
        return next((known[name] for name in names if name in known and known[name].size == size), None)

    factor, shift, mean, std = of(_FACTORS, 1), of(_SHIFTS, 1), of(_MEANS, channels), of(_STDS, channels)
    one = float(factor[0]) if factor is not None else 1.0
    if mean is not None and std is not None and bool((std != 0).all()):
        return tuple(float(number) for number in one / std), tuple(float(number) for number in mean), ""
    if mean is None and std is None and known.keys() & set(_MEANS) and known.keys() & set(_STDS):
        return 1.0, 0.0, "its statistics of the latents are not one number for each channel, and are not carried"
    return one, float(shift[0]) if shift is not None else 0.0, ""


def numbers_in(value: Any) -> NDArray[np.float64] | None:
    """Return the numbers of a value as one row; None if it is no number and holds something else."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, Mapping):
        value = list(value.values())
    try:
        array = np.asarray(value.detach().cpu().float() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return array.astype(np.float64).ravel() if array.dtype.kind in "iuf" else None


def stated_priors(owner: object) -> list[str]:
    """Return the names of settings that state another prior than the standard normal."""
    return list(dict.fromkeys(setting.name for setting in settings_of(owner) if _states_a_prior(setting)))


def _states_a_prior(setting: Setting) -> bool:
    name, value = setting.name.lower(), setting.value
    if isinstance(value, str):
        text = re.sub(r"[\s_-]+", " ", value.lower()).replace("n(0, i)", "n01").replace("n(0, 1)", "n01")
        return bool(_KINDS.fullmatch(name)) and not _STANDARD.fullmatch(text)
    moment = "prior" in name and (name == "prior" or bool(_MOMENTS & set(re.split(r"[._0-9]+", name))))
    # An attribute with a part of a number, such as prior_strength, may be one of the distribution, too.
    loose = "prior" in name and setting.own and isinstance(value, (float, Tensor))
    if not (moment or loose or _OF_A_PRIOR.fullmatch(name)):
        return False
    return states_numbers(value)


def states_numbers(value: object) -> bool:
    """Return whether a value is numbers other than those of a standard normal: its means, variances or logarithms."""
    numbers = numbers_in(value)
    return numbers is not None and numbers.size > 0 and not bool(((numbers == 0) | (numbers == 1)).all())


def returned_priors(output: object) -> list[str]:
    """Return the names of the fields of a model's answer that are a prior's, other than those of a standard normal."""
    named = fields_of(output)
    found = []
    for name, value in (named or {}).items():
        if not isinstance(name, str) or not ("prior" in name.lower() or _OF_A_PRIOR.fullmatch(name)):
            continue
        parts = value if isinstance(value, (tuple, list)) else [value]
        tensors = [part for part in parts if isinstance(part, Tensor)]
        tensors += [t for part in parts if isinstance(part, Normal) for t in (part.loc, part.scale)]
        other = any(isinstance(part, Distribution) and not isinstance(part, (Normal, Independent)) for part in parts)
        if other or any(t.dim() and not bool((t == 0).all() | (t == 1).all()) for t in tensors):
            found.append(name)
    return found
