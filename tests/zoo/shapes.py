"""Plain modules in the shapes that public code has: other names of methods, other answers, several samples at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .entry import Entry, made


class Coder(nn.Module):
    """The layers that the classes below share: 12 numbers, 4 latents."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(12, 24), nn.ReLU())
        self.mu, self.logvar = nn.Linear(24, 4), nn.Linear(24, 4)
        self.head = nn.Sequential(nn.Linear(4, 24), nn.ReLU(), nn.Linear(24, 12))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.mu(h), self.logvar(h)

    def drawn(self, mu: Tensor, logvar: Tensor) -> Tensor:
        return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)


class ShortNames(Coder):
    def enc(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.posterior(x)

    def dec(self, z: Tensor) -> Tensor:
        return self.head(z)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.enc(x)
        return self.dec(self.drawn(mu, logvar)), mu, logvar


class SampleFirst(Coder):
    """encode gives (z, mu, logvar), z drawn inside."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.posterior(x)
        return self.drawn(mu, logvar), mu, logvar

    def decode(self, z: Tensor) -> Tensor:
        return self.head(z)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, mu, logvar = self.encode(x)
        return self.decode(z), mu, logvar


class TupleDecoder(Coder):
    """decode gives the observation and the features before it."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.posterior(x)

    def decode(self, z: Tensor) -> tuple[Tensor, Tensor]:
        h = self.head[1](self.head[0](z))
        return self.head[2](h), h

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x)
        return self.decode(self.drawn(mu, logvar))[0], mu, logvar


class SampleAxis(Coder):
    """An importance-weighted autoencoder: forward draws several latents for each observation, [samples, batch, …]."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.posterior(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.head(z)  # type: ignore[no-any-return]

    def forward(self, x: Tensor, samples: int = 5) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x)
        mus, logvars = (tensor.unsqueeze(0).expand(samples, -1, -1) for tensor in (mu, logvar))
        return self.decode(self.drawn(mus, logvars)), mu, logvar


class InForward(Coder):
    """No encode and decode: forward has it all, as in many tutorials."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.posterior(x)
        return torch.sigmoid(self.head(self.drawn(mu, logvar))), mu, logvar


class Pixels(Coder):
    """Takes [n, 784]."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(784, 24), nn.Linear(4, 784)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.posterior(x)

    def decode(self, z: Tensor) -> Tensor:
        return self.head(z)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mu, logvar = self.encode(x)
        return self.decode(self.drawn(mu, logvar)), mu, logvar


class ResidualCodes(nn.Module):
    """The structure of Descript's codec: encode gives z, codes, latents and losses, decode takes z, forward a mapping.

    Its package asks for a version of protobuf that onnx does not take.
    """

    def __init__(self, levels: int = 2, codes: int = 16, width: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(1, width, 8, 4, 2), nn.ELU(), nn.Conv1d(width, width, 3, 1, 1))
        self.quantizer = nn.ModuleList(nn.Embedding(codes, width) for _ in range(levels))
        self.decoder = nn.Sequential(nn.Conv1d(width, width, 3, 1, 1), nn.ELU(), nn.ConvTranspose1d(width, 1, 8, 4, 2))

    def encode(self, audio_data: Tensor, n_quantizers: int | None = None) -> tuple[Tensor, ...]:
        h = self.encoder(audio_data)
        residual, z, codes = h, torch.zeros_like(h), []
        for level in self.quantizer[:n_quantizers]:
            assert isinstance(level, nn.Embedding)
            table = functional.normalize(level.weight, dim=-1)
            scores = torch.einsum("bct,kc->btk", functional.normalize(residual, dim=1), table)
            codes.append(scores.argmax(-1))
            quantized = level(codes[-1]).transpose(1, 2)
            z, residual = z + quantized, residual - quantized
        loss = functional.mse_loss(z, h)
        return z, torch.stack(codes, 1), h, loss, loss

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)  # type: ignore[no-any-return]

    def forward(self, audio_data: Tensor) -> dict[str, Tensor]:
        z, codes, latents, commitment, codebook = self.encode(audio_data)
        return {
            **{"audio": self.decode(z), "z": z, "codes": codes, "latents": latents},
            **{"vq/commitment_loss": commitment, "vq/codebook_loss": codebook},
        }

    def from_codes(self, codes: Tensor) -> Tensor:
        return self.decode(sum(level(codes[:, k]).transpose(1, 2) for k, level in enumerate(self.quantizer)))


def _made(cls: Callable[[], Any], shape: tuple[int, ...]) -> Callable[[], tuple[Any, dict[str, Any]]]:
    def make() -> tuple[Any, dict[str, Any]]:
        model, example = made(cls, shape)
        return model, {"example": example}

    return make


def _shape(name: str, cls: Callable[[], Any], **asked: Any) -> Entry:
    functions = {"encode": lambda m, x, c: m.posterior(x), "decode": lambda m, z, c: m.head(z[0]), **asked}
    return Entry("shapes", name, _made(cls, (12,)), **functions)


ENTRIES = (
    _shape("methods enc and dec", ShortNames),
    _shape("encode gives (z, mu, logvar)", SampleFirst),
    _shape("decode gives a tuple", TupleDecoder),
    _shape("forward draws several latents a row", SampleAxis),
    _shape("forward alone", InForward, decode=lambda m, z, c: torch.sigmoid(m.head(z[0]))),
    Entry(
        "shapes",
        "a model of [n, 784], an example [n, 28, 28]",
        _made(Pixels, (28, 28)),
        expect="refused: 784",
    ),
    Entry(
        "shapes",
        "Descript's codec, its structure",
        _made(ResidualCodes, (1, 64)),
        encode=lambda m, x, c: m.encode(x)[1],
        decode=lambda m, z, c: m.from_codes(z[0]),
    ),
)
