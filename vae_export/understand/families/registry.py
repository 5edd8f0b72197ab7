"""Find what is known of a model of another library by the name of its class, without importing the library.

Each `encode` and `decode` of a family calls the model's own modules in the library's order. It leaves out sampling,
objects that wrap the answer, and losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from ..declaration import Declaration, Mixture
from .ctgan import tvae
from .diffusers import MODELS as DIFFUSERS
from .diffusers import other_model
from .family import DecoderData, Family, ObjectData
from .monai import MODELS as MONAI
from .pyod import MODELS as PYOD
from .pyod import object_data as pyod_data
from .pythae import MODELS as PYTHAE
from .pythae import SAMPLERS
from .scvi import MODELS as SCVI
from .scvi import object_data as scvi_data
from .transformers import MODELS as TRANSFORMERS

# By the package that defines the class: the library's usual name, and its models.
_LIBRARIES: Mapping[str, tuple[str, Mapping[str, Family]]] = {
    "diffusers": ("diffusers", DIFFUSERS),
    "monai": ("MONAI", MONAI),
    "pyod": ("pyod", PYOD),
    "pythae": ("pythae", PYTHAE),
    "transformers": ("transformers", TRANSFORMERS),
    "scvi": ("scvi-tools", SCVI),
}

# By the package: the data that its trained objects hold.
_DATA: Mapping[str, Callable[[object, Tensor | None], ObjectData | None]] = {"pyod": pyod_data, "scvi": scvi_data}


def family_of(model: object) -> tuple[str, Declaration] | None:
    """Return the name of a model's family and its declaration, or None for a model of no known family.

    A class that is derived from a known one counts as that one, unless it comes from the same library or replaces one
    of the family's methods.

    Raises:
        ExportError: the model, or a setting of it, cannot be exported as the library computes it.
    """
    mro = type(model).__mro__
    for number, known in enumerate(mro):
        package = _package(known)
        library, models = _LIBRARIES.get(package, ("", {}))
        family = models.get(known.__name__)
        if family is None:
            continue
        derived = [cls for cls in mro[:number] if issubclass(cls, known)]
        if any(_package(cls) == package or vars(cls).keys() & family.methods for cls in derived):
            break
        declaration = family.describe(model)
        return None if declaration is None else (f"{library} {known.__name__}", declaration)
    declaration = other_model(model)
    return None if declaration is None else ("the config of a diffusers model", declaration)


def object_data(holder: object, example: Tensor | None) -> ObjectData | None:
    """Return the data that a library's trained object has for its module; None for any other object."""
    for cls in type(holder).__mro__:
        if _package(cls) in _DATA:
            return _DATA[_package(cls)](holder, example)
    return None


def decoder_data(holder: object) -> DecoderData | None:
    """Return what a trained object that keeps a decoder alone has; None for any other object.

    Raises:
        ExportError: no bundle carries what it has.
    """
    if any((_package(cls), cls.__name__) == ("ctgan", "TVAE") for cls in type(holder).__mro__):
        return tvae(holder)
    return None


def sampler_prior(sampler: object) -> str | Mixture | None:
    """Return the prior of a library's object that samples a model; None for an object that is not known.

    Raises:
        ExportError: the sampler is not fitted, or draws from what no bundle carries.
    """
    for cls in type(sampler).__mro__:
        if _package(cls) == "pythae" and cls.__name__ in SAMPLERS:
            return SAMPLERS[cls.__name__](sampler)
    return None


def _package(cls: type) -> str:
    return cls.__module__.partition(".")[0]
