"""transformers: codecs of sound and images that take or return more than observations and codes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...errors import ExportError
from ..declaration import Declaration
from .family import Family


def _encodec(model: Any) -> Declaration:
    config = model.config
    if config.normalize or config.chunk_length is not None:
        raise ExportError(
            "EncodecModel: with normalize or chunk_length_s, it keeps a scale of each chunk beside the codes, and "
            "blends chunks, which a bundle does not carry; pass encode= and decode=, functions of m.encoder, "
            "m.quantizer and m.decoder for one chunk"
        )

    def encode(x: Tensor) -> Tensor:
        # The first axis counts chunks, of which there is one.
        return model.encode(x).audio_codes[0]  # type: ignore[no-any-return]

    def decode(codes: Tensor) -> Tensor:
        return model.decode(codes[None], [None]).audio_values  # type: ignore[no-any-return]

    return Declaration(
        encode=encode,
        decode=decode,
        posterior="codes",
        codebook=config.codebook_size,
        axes=("channel", "time"),
        latent_axes=("level", "time"),
    )


def _emu3(model: Any) -> Declaration:
    def encode(x: Tensor) -> Tensor:
        # As the library's encode, which crops the codes to the size of each image.
        image = x.dim() == 4
        frames = x.unsqueeze(1).repeat(1, model.config.temporal_downsample_factor, 1, 1, 1) if image else x
        h = model.quant_conv(model.encoder(frames).permute(0, 2, 1, 3, 4)).permute(0, 2, 1, 3, 4)
        codes = model.quantize(h)
        return codes.squeeze(1) if image else codes  # type: ignore[no-any-return]

    return Declaration(encode=encode, decode="decode", posterior="codes", codebook=model.config.codebook_size)


def _chameleon(model: Any) -> Declaration:
    raise ExportError(
        "ChameleonVQVAE: the library has its encoder alone, and a bundle needs a decoder; pass decode=, a function of "
        "the codes, if you have one"
    )


MODELS = {
    "EncodecModel": Family(_encodec),
    "Emu3VQVAE": Family(_emu3),
    "ChameleonVQVAE": Family(_chameleon),
}
