"""Find how a model's decode takes codes, how many codes there are, and which item of its answer is the observation."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from vae_runtime.errors import error_line

from ..errors import ExportError
from .draws import Draws
from .functions import Functions
from .posterior import ForwardDiffers, first_sample, sample_axes
from .reading import base_of

# Methods that decode codes, where decode takes the vectors that they stand for.
_CODE_DECODERS = (
    "decode_code", "decode_codes", "decode_from_code", "decode_from_codes", "decode_indices", "decode_from_indices",
    "decode_tokens", "decode_samples", "decode_to_img", "from_codes",
)  # fmt: skip
# Parts of the names of parameters that take codes.
_CODE_WORDS = ("code", "indices", "index", "token", "ids")
# Attributes of modules and configurations with the number of codes.
_SIZES = ("codebook_size", "n_codes", "num_codes", "n_embed", "n_e", "num_embeddings", "vocab_size", "n_embeddings")


def decoding_codes(functions: Functions, codes: Sequence[Tensor]) -> Functions:
    """Return the functions with a decode that takes these codes, one argument for each latent.

    Decode is tried with the codes in order, as one list, by keyword, and in one row; then methods that are named as if
    they decoded codes.

    Raises:
        ForwardDiffers: nothing of the model decodes them, and it has a `forward` that may be cut.
        ExportError: nothing of the model decodes them.
    """
    failures = []
    for decode, line in _decoders(functions):
        tried = replace(functions, decode=decode, latent_dtypes=())
        try:
            with torch.no_grad():
                tried.for_latents(codes, [code.long() for code in codes]).decoded(codes, Draws.constant(0.0))
            return replace(tried, recognised=(*functions.recognised, *line))
        except Exception as error:
            failures.append(error_line(error))
    shapes = ", ".join(str(list(each.shape)) for each in codes)
    # Where forward takes the example, its halves may serve.
    raise (ForwardDiffers if functions.forward_runs() else ExportError)(
        f"decode: fails on latents {shapes}: {failures[0]}; the latents are codes, pass decode=, a function of these"
    )


def _decoders(functions: Functions) -> Iterator[tuple[Callable[..., Any], tuple[str, ...]]]:
    """Ways to decode codes, each with a line that describes it."""
    model, own = functions.model, functions.decode
    yield own, ()
    yield _listed(own), ("decode: takes the codes as one list",)
    target = own.forward if isinstance(own, nn.Module) else own
    for name in inspect.signature(target).parameters:
        if any(word in name for word in _CODE_WORDS):
            yield (
                (lambda *codes, name=name, **others: own(**{name: codes[0]}, **others)),
                (f"decode: takes the codes as {name}=",),
            )
    for name in _CODE_DECODERS:
        method = getattr(model, name, None)
        if inspect.ismethod(method):
            line = (f"decode: {type(model).__name__}.{name}",)
            yield method, line
            yield _listed(method), line


def decoding_observations(functions: Functions, latents: Sequence[Tensor], shape: Sequence[int] | None) -> Functions:
    """Return the functions with a decode that returns the observation alone, where its answer is a tuple.

    The first item is the observation. If it is none, such as in (None, x), or a tensor of another shape while a later
    item has the example's shape, that item is.

    Args:
        functions: encode and decode.
        latents: those of the example.
        shape: the example's shape, None for a decoder alone.
    """
    try:
        with torch.no_grad():
            output, _ = functions.decoded_quietly(latents)
    except Exception:
        # Decode is understood later, and its failure explained.
        return functions
    if isinstance(output, Mapping):
        return _named_observation(functions, output, shape)
    if not isinstance(output, (tuple, list)) or hasattr(output, "_asdict") or isinstance(output[0], Distribution):
        return functions
    tensors = [number for number, item in enumerate(output) if isinstance(item, Tensor) and item.dim()]
    item = next((number for number in tensors if output[number].shape == shape), min(tensors, default=0))
    if item == 0 or (0 in tensors and output[item].shape != shape):
        return functions
    own = functions.decode
    # Others of its shape may be its scale, and stay behind it.
    kept = (item, *(number for number in tensors if number != item and output[number].shape == output[item].shape))

    def decode(*given: Any, **others: Any) -> Any:
        answer = own(*given, **others)
        return answer[item] if len(kept) == 1 else tuple(answer[number] for number in kept)

    # The model's own decode is what its sampler calls.
    functools.update_wrapper(decode, own, updated=())
    line = f"decode: item {item + 1} of its answer is the observation, {list(output[item].shape[1:])}"
    return replace(
        functions,
        decode=decode,
        recognised=(*functions.recognised, line),
    )


def _named_observation(functions: Functions, output: Mapping[Any, Any], shape: Sequence[int] | None) -> Functions:
    """The functions with a decode whose mapping has the observation as x, where its shape alone shows which that is."""
    taken = base_of(output)
    alike = [name for name, value in output.items() if isinstance(value, Tensor) and value.shape == shape]
    if isinstance(taken, Distribution) or len(alike) != 1 or (isinstance(taken, Tensor) and taken.shape == shape):
        return functions
    own, key = functions.decode, alike[0]

    def decode(*given: Any, **others: Any) -> Any:
        answer = own(*given, **others)
        return {"x": answer[key], **{name: value for name, value in answer.items() if name not in (key, "x")}}

    functools.update_wrapper(decode, own, updated=())
    line = f"decode: {key!r} of its answer is the observation, {list(output[key].shape[1:])}"
    return replace(functions, decode=decode, recognised=(*functions.recognised, line))


def decoding_samples(functions: Functions, latents: Sequence[Tensor]) -> Functions:
    """Return the functions with a decode of one latent, where the model's takes several samples of each observation.

    An importance-weighted model decodes [n, samples, …], or has two axes of samples.

    Args:
        functions: encode and decode.
        latents: those of the example, [n, …].
    """
    if len(latents) != 1:
        return functions
    try:
        with torch.no_grad():
            functions.decoded_quietly(latents)
            return functions
    except Exception:
        own = functions.decode
    try:
        shown = [axes for z in functions.forward().decoded for axes in sample_axes(z.shape, latents[0].shape)]
    except Exception:
        return functions
    for axes in dict.fromkeys(shown):

        def decode(z: Tensor, *given: Any, axes: tuple[int, ...] = axes, **others: Any) -> Any:
            for axis in axes:
                z = z.unsqueeze(axis)
            answer = own(z, *given, **others)
            return torch.utils._pytree.tree_map_only(Tensor, lambda tensor: first_sample(tensor, axes), answer)

        # The model's own decode is what its sampler calls.
        functools.update_wrapper(decode, own, updated=())
        line = (
            f"decode: takes samples of each observation along axis {' and '.join(map(str, axes))}; the graph takes one"
        )
        tried = replace(functions, decode=decode, recognised=(*functions.recognised, line))
        with contextlib.suppress(Exception), torch.no_grad():
            tried.decoded_quietly(latents)
            return tried
    return functions


def _listed(decode: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *codes, **others: decode(list(codes), **others)


def number_of_codes(functions: Functions, codes: Sequence[Tensor], which: int, declared: int | None) -> int:
    """Return how many codes a latent's codebook has.

    It is declared, or the size of a table of the model such that decode takes codes up to that and fails beyond it, or
    the only number that the model's parts give as the size of a codebook.

    Args:
        functions: encode and decode.
        codes: the codes of the example, for each latent.
        which: the number of the latent.
        declared: the number of codes, if it is known.

    Raises:
        ExportError: it is unknown, or the example has a larger code.
    """
    max_code = int(codes[which].max())
    if declared is not None:
        if declared <= max_code:
            raise ExportError(f"codebook: expected more than {max_code} codes, as the example has, got {declared}")
        return int(declared)

    def decodes(code: int) -> bool:
        moved = [torch.full_like(each, code) if j == which else each for j, each in enumerate(codes)]
        try:
            with torch.no_grad():
                functions.decoded(moved, Draws.constant(0.0))
        except Exception:
            return False
        return True

    named = {size for size in sizes_named(functions.model) if size > max_code}
    for size in sorted(named):
        if decodes(size - 1) and not decodes(size):
            return size
    tensors = [*functions.model.parameters(), *functions.model.buffers()]
    sizes = sorted({size for tensor in tensors for size in tensor.shape if size > max_code})
    low, high = 0, len(sizes)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if decodes(sizes[middle] - 1) else (low, middle)
    if low and not decodes(sizes[low - 1]):
        return sizes[low - 1]
    if len(named) == 1:
        return named.pop()
    raise ExportError("codebook: the number of codes is unknown; pass codebook=")


def sizes_named(model: nn.Module) -> Iterator[int]:
    """Yield what a model, its parts and its configuration give as the number of codes."""
    for owner in (*model.modules(), getattr(model, "config", None)):
        for name in _SIZES:
            value = getattr(owner, name, None)
            if isinstance(value, int) and not isinstance(value, bool):
                yield value
