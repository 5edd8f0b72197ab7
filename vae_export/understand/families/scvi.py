"""scvi-tools: scvi.module.VAE, as its inference() and generative() compute."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import ExportError
from ..declaration import Declaration
from .family import Family

# Values of `gene_likelihood` without a dispersion.
_WITHOUT_DISPERSION = ("poisson",)


class _Functions:
    """encode and decode of a scvi.module.VAE.

    The conditions are taken only where the model uses them: batch_index int64 [n] or [n, 1]; library float32 [n, 1],
    the log of the total count; size_factor float32 [n, 1], the log of the size factor, instead of it; cont_covs float32
    [n, k]; cat_covs int64 [n, k]; y int64 [n] or [n, 1], the label.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._embedded = module.batch_representation == "embedding"

    def encode(
        self,
        x: Tensor,
        batch_index: Tensor | None = None,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        h = torch.log1p(x) if self._module.log_variational else x
        encoder = self._module.z_encoder
        if not self._module.encode_covariates:
            q = encoder.encoder(h)
        else:
            h = h if cont_covs is None else torch.cat((h, cont_covs), dim=-1)
            q = encoder.encoder(self._with_batch(h, batch_index), *self._categories(x.shape[0], batch_index, cat_covs))
        return encoder.mean_encoder(q), encoder.var_activation(encoder.var_encoder(q)) + encoder.var_eps

    def decode(
        self,
        z: Tensor,
        library: Tensor | None = None,
        batch_index: Tensor | None = None,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
        size_factor: Tensor | None = None,
        y: Tensor | None = None,
    ) -> dict[str, Tensor]:
        module = self._module
        size = self._size(library, size_factor)
        # For a logistic normal, z is the normal; the decoder takes its softmax.
        z = module.z_encoder.z_transformation(z)
        h = self._with_batch(z if cont_covs is None else torch.cat([z, cont_covs], dim=-1), batch_index)
        px_scale, px_r, px_rate, px_dropout = module.decoder(
            module.dispersion, h, size, *self._categories(z.shape[0], batch_index, cat_covs)
        )
        outputs = {"px_rate": px_rate}
        if module.gene_likelihood not in _WITHOUT_DISPERSION:
            outputs["px_r"] = torch.exp(self._dispersion(px_r, px_rate, batch_index, y))
        if module.gene_likelihood == "zinb":
            outputs["px_dropout"] = px_dropout
        return {**outputs, "px_scale": px_scale}

    def _size(self, library: Tensor | None, size_factor: Tensor | None) -> Tensor:
        if self._module.use_size_factor_key:
            if size_factor is None:
                raise _missing("size_factor", "float32 [n, 1], the log of the size factor of each cell")
            return size_factor
        if library is None:
            raise _missing("library", "float32 [n, 1], the log of the total count of each cell")
        return library

    def _categories(self, rows: int, batch_index: Tensor | None, cat_covs: Tensor | None) -> tuple[Tensor, ...]:
        covariates = () if cat_covs is None else torch.split(cat_covs, 1, dim=1)
        return covariates if self._embedded else (self._batches(rows, batch_index), *covariates)

    def _batches(self, rows: int, batch_index: Tensor | None) -> Tensor:
        if batch_index is not None:
            return batch_index.reshape(-1, 1)
        if self._module.n_batch > 1:
            raise _missing("batch_index", "integers [n], the batch that each cell is of")
        return torch.zeros((rows, 1), dtype=torch.int64)

    def _with_batch(self, tensor: Tensor, batch_index: Tensor | None) -> Tensor:
        if not self._embedded:
            return tensor
        # The name that the library registers its embedding of batches under.
        embedding = self._module.get_embedding("batch")
        return torch.cat([tensor, embedding(self._batches(tensor.shape[0], batch_index).flatten())], dim=-1)

    def _dispersion(self, px_r: Tensor | None, like: Tensor, batch_index: Tensor | None, y: Tensor | None) -> Tensor:
        module = self._module
        if module.dispersion == "gene-cell":
            assert px_r is not None
            return px_r
        if module.dispersion == "gene":
            return module.px_r.expand_as(like)  # type: ignore[no-any-return]
        if module.dispersion == "gene-batch":
            return module.px_r.T[self._batches(like.shape[0], batch_index).flatten()]  # type: ignore[no-any-return]
        if y is None:
            raise _missing("y", "integers [n], the label of each cell")
        return module.px_r.T[y.flatten()]  # type: ignore[no-any-return]


def _vae(module: Any) -> Declaration | None:
    if not module.use_observed_lib_size:
        # The library size is then a latent of its own, with a prior for each batch.
        return None
    functions = _Functions(module)
    return Declaration(
        encode=functions.encode,
        decode=functions.decode,
        posterior="var",
        likelihood="none",
        prior="normal",
        axes=("gene",),
    )


def _missing(name: str, meaning: str) -> ExportError:
    return ExportError(f"scvi-tools VAE: expected the condition {name}, {meaning}; pass conditions={{{name!r}: …}}")


MODELS = {"VAE": Family(_vae, ("inference", "_regular_inference", "generative"))}
