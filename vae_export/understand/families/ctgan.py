"""ctgan: its synthesizer TVAE, whose fit keeps a decoder and the transformer of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Normal

from vae_runtime.columns import Column, Value

from ...errors import ExportError
from ..declaration import Declaration
from .family import DecoderData

# How many latents are drawn for an example.
_ROWS = 64


def tvae(synthesizer: Any) -> DecoderData:
    """Return the decoder of a fitted TVAE as its `sample` uses it, and the table that its transformer makes.

    Raises:
        ExportError: it is not fitted, or its table has columns that no bundle describes.
    """
    transformer = getattr(synthesizer, "transformer", None)
    module = getattr(synthesizer, "decoder", None)
    if transformer is None or module is None:
        raise ExportError("ctgan TVAE: expected a fitted synthesizer; call its fit first")
    spans = [span for column in transformer.output_info_list for span in column]
    noisy = torch.cat([torch.full((span.dim,), float(span.activation_fn != "softmax")) for span in spans])

    def decode(z: Tensor) -> Normal | Tensor:
        answer, sigma = module(z)
        mean = torch.tanh(answer)
        # A category is the largest value as it stands; only the value within a mode is drawn.
        return Normal(mean, sigma * noisy.to(sigma), validate_args=False) if bool(noisy.any()) else mean

    columns = zip(transformer._column_transform_info_list, transformer._column_raw_dtypes, strict=True)
    generator = torch.Generator().manual_seed(0)
    return DecoderData(
        latents=torch.randn(_ROWS, synthesizer.embedding_dim, generator=generator),
        declaration=Declaration(decode=decode, prior="normal", axes=("feature",)),
        table=tuple(_column(info, dtype) for info, dtype in columns),
        note="TVAE: its decoder is exported as sample uses it: tanh, sigma, and the columns of its transformer",
    )


def _column(info: Any, dtype: Any) -> Column:
    """Return a column of the transformer; `dtype`, of numpy or pandas, is what the library makes of it in the end."""
    name = str(info.column_name)
    transform = info.transform
    if info.column_type == "discrete":
        return Column(name, "categories", categories=_categories(name, transform.dummies))
    if dtype.kind not in "iuf":
        raise _refused(name, f"numbers, got {dtype}; list it in discrete_columns when you fit")
    if getattr(transform.null_transformer, "nulls", None):
        raise _refused(
            name, "no missing numbers, as the library's own sample fails on them; fill them in and fit again"
        )
    if transform.learn_rounding_scheme or transform.enforce_min_max_values:
        raise _refused(name, "the settings of ctgan's own transformer, got rounding or bounds of your own")
    valid = np.asarray(transform.valid_component_indicator)
    mixture = transform._bgm_transformer
    means = mixture.means_.reshape(-1)[valid]
    scales = transform.STD_MULTIPLIER * np.sqrt(mixture.covariances_).reshape(-1)[valid]
    rounding = None
    if dtype.kind in "iu":
        # The transformer rounds what it saw as integers; the library then casts the table.
        rounding = "nearest" if transform._dtype.kind in "iu" else "zero"
    return Column(name, "modes", tuple(map(float, means)), tuple(map(float, scales)), rounding)


def _categories(name: str, values: Sequence[Any]) -> tuple[Value, ...]:
    categories: list[Value] = []
    for value in values:
        plain = value.item() if isinstance(value, np.generic) else value
        if isinstance(plain, float) and math.isnan(plain):
            plain = None
        if not (plain is None or isinstance(plain, (str, bool, int, float))):
            raise _refused(name, f"strings, numbers or bools as categories, got {type(plain).__name__}")
        categories.append(plain)
    return tuple(categories)


def _refused(name: str, reason: str) -> ExportError:
    return ExportError(f"ctgan TVAE: column {name!r}: expected {reason}")
