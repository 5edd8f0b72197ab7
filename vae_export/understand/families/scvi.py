"""scvi-tools: its modules, as their inference() and generative() compute, and the data of its trained objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import ExportError
from ..declaration import Declaration
from .family import Family, ObjectData

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
        if not self._module.encode_covariates:
            return _normal(self._module.z_encoder, h)
        h = h if cont_covs is None else torch.cat((h, cont_covs), dim=-1)
        categories = self._categories(x.shape[0], batch_index, cat_covs)
        return _normal(self._module.z_encoder, self._with_batch(h, batch_index), *categories)

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


def _normal(encoder: Any, h: Tensor, *categories: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the variance of a scvi.nn.Encoder."""
    q = encoder.encoder(h, *categories)
    return encoder.mean_encoder(q), encoder.var_activation(encoder.var_encoder(q)) + encoder.var_eps


def _column(values: Tensor) -> Tensor:
    return values.reshape(-1, 1)


def _counts(functions: Any, **further: Any) -> Declaration:
    """A model of counts, whose negative binomial is no likelihood of a bundle."""
    return Declaration(
        encode=functions.encode,
        decode=functions.decode,
        **{"posterior": "var", "likelihood": "none", "prior": "normal", "axes": ("gene",), **further},
    )


def _vae(module: Any, **further: Any) -> Declaration:
    if not module.use_observed_lib_size:
        further["posterior_reason"] = (
            "the library size, in this model a latent of its own, is a condition of the decoder"
        )
    # A bundle knows this one by the same name.
    likelihood = module.gene_likelihood if module.gene_likelihood in _WITHOUT_DISPERSION else "none"
    return _counts(_Functions(module), **{"likelihood": likelihood, **further})


def _scanvae(module: Any) -> Declaration:
    reason = "the prior of the latent depends on the label and a second latent (SCANVI)"
    return _vae(module, prior="none", prior_reason=reason)


class _Accessibility:
    """encode and decode of a scvi.module.PEAKVAE; conditions as those of `_Functions`.

    decode gives the probability that a region is accessible, before the factors of cells and regions.
    """

    def __init__(self, module: Any) -> None:
        self._module = module

    def encode(
        self,
        x: Tensor,
        batch_index: Tensor | None = None,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if not self._module.encode_covariates:
            return _normal(self._module.z_encoder, x)
        h = x if cont_covs is None else torch.cat([x, cont_covs], dim=-1)
        return _normal(self._module.z_encoder, h, *self._categories(x.shape[0], batch_index, cat_covs))

    def decode(
        self,
        z: Tensor,
        batch_index: Tensor | None = None,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
    ) -> Tensor:
        z = self._module.z_encoder.z_transformation(z)
        h = z if cont_covs is None else torch.cat([z, cont_covs], dim=-1)
        return self._module.z_decoder(h, *self._categories(z.shape[0], batch_index, cat_covs))  # type: ignore[no-any-return]

    def _categories(self, rows: int, batch_index: Tensor | None, cat_covs: Tensor | None) -> tuple[Tensor, ...]:
        if batch_index is None and _batches(self._module) > 1:
            raise _missing("batch_index", "integers [n], the batch that each cell is of")
        batch = torch.zeros((rows, 1), dtype=torch.int64) if batch_index is None else _column(batch_index)
        return (batch, *(() if cat_covs is None else torch.split(cat_covs, 1, dim=1)))


def _peakvae(module: Any) -> Declaration:
    return _counts(_Accessibility(module), axes=("region",), range=(0.0, 1.0))


class _Labelled:
    """encode and decode of a scvi.module.VAEC: y int64 [n], the label; library float32 [n, 1], the total count."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def encode(self, x: Tensor, y: Tensor, batch_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        h = torch.log1p(x) if self._module.log_variational else x
        if self._module.encode_covariates:
            h = torch.cat([h, self._batch(h, batch_index)], dim=-1)
        return _normal(self._module.z_encoder, h, _column(y))

    def decode(self, z: Tensor, y: Tensor, library: Tensor, batch_index: Tensor | None = None) -> dict[str, Tensor]:
        module = self._module
        h = module.decoder(torch.cat([z, self._batch(z, batch_index)], dim=-1), _column(y))
        scale = torch.softmax(module.px_decoder(h) + module.per_ct_bias[y.flatten()], dim=-1)
        rate = library * scale
        return {"px_rate": rate, "px_r": torch.exp(module.px_r).expand_as(rate), "px_scale": scale}

    def _batch(self, like: Tensor, batch_index: Tensor | None) -> Tensor:
        if batch_index is None and self._module.n_batch > 1:
            raise _missing("batch_index", "integers [n], the batch that each cell is of")
        batch = torch.zeros(like.shape[0], dtype=torch.int64) if batch_index is None else batch_index.flatten()
        return self._module.get_embedding("batch")(batch)  # type: ignore[no-any-return]


def _vaec(module: Any) -> Declaration:
    if module.prior == "normal":
        return _counts(_Labelled(module))
    reason = "the prior is a mixture of normals for each label (CondSCVI)"
    return _counts(_Labelled(module), prior="none", prior_reason=reason)


class _Proteins:
    """encode and decode of a scvi.module.TOTALVAE; conditions as those of `_Functions`, and two others.

    proteins float32 [n, protein], the counts of proteins, which encode takes; library float32 [n, 1], the total count.
    """

    def __init__(self, module: Any) -> None:
        self._module = module

    def encode(
        self,
        x: Tensor,
        proteins: Tensor,
        batch_index: Tensor | None = None,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        parts = [part / (1 + part.mean(1, keepdim=True)) for part in (x, proteins)]
        if self._module.log_variational:
            parts = [torch.log(1 + part) for part in parts]
        covariates = self._module.encode_covariates
        h = torch.cat(parts if cont_covs is None or not covariates else [*parts, cont_covs], dim=-1)
        encoder = self._module.encoder
        q = encoder.encoder(h, *self._categories(len(x), batch_index, cat_covs if covariates else None))
        return encoder.z_mean_encoder(q), torch.exp(encoder.z_var_encoder(q)) + 1e-4

    def decode(
        self,
        z: Tensor,
        library: Tensor,
        batch_index: Tensor | None = None,
        cont_covs: Tensor | None = None,
        cat_covs: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The genes' parameters, and those of the proteins that need no draw of the background."""
        module, decoder = self._module, self._module.decoder
        z = module.encoder.z_transformation(z)
        z = z if cont_covs is None else torch.cat([z, cont_covs], dim=-1)
        categories = self._categories(z.shape[0], batch_index, cat_covs)

        def layer(first: Any, *seconds: Any) -> list[Tensor]:
            h = torch.cat([first(z, *categories), z], dim=-1)
            return [second(h, *categories) for second in seconds]

        (scale,) = layer(decoder.px_decoder, decoder.px_scale_decoder)
        scale = decoder.px_scale_activation(scale)
        alpha, beta = layer(decoder.py_back_decoder, decoder.py_back_mean_log_alpha, decoder.py_back_mean_log_beta)
        (fore,) = layer(decoder.py_fore_decoder, decoder.py_fore_scale_decoder)
        dropout, mixing = layer(decoder.sigmoid_decoder, decoder.px_dropout_decoder_gene, decoder.py_background_decoder)
        return {
            "px_rate": library * scale,
            "px_scale": scale,
            "px_dropout": dropout,
            "py_back_alpha": alpha,
            "py_back_beta": decoder.activation_function_bg(beta) + 1e-8,
            "py_fore_scale": fore + 1 + 1e-8,
            "py_mixing": mixing,
        }

    def _categories(self, rows: int, batch_index: Tensor | None, cat_covs: Tensor | None) -> tuple[Tensor, ...]:
        if batch_index is None and self._module.n_batch > 1:
            raise _missing("batch_index", "integers [n], the batch that each cell is of")
        batch = torch.zeros((rows, 1), dtype=torch.int64) if batch_index is None else _column(batch_index)
        return (batch, *(() if cat_covs is None else torch.split(cat_covs, 1, dim=1)))


def _totalvae(module: Any) -> Declaration:
    if not module.use_observed_lib_size or module.use_size_factor_key:
        raise ExportError(
            "scvi-tools TOTALVAE: a latent library size or a size factor of its own is not carried; train with "
            "use_observed_lib_size=True and without size_factor_key"
        )
    return _counts(_Proteins(module))


def _missing(name: str, meaning: str) -> ExportError:
    return ExportError(f"scvi-tools VAE: expected the condition {name}, {meaning}; pass conditions={{{name!r}: …}}")


_METHODS = ("inference", "_regular_inference", "generative")
MODELS = {
    "VAE": Family(_vae, _METHODS),
    "LDVAE": Family(_vae, _METHODS),
    "SCANVAE": Family(_scanvae, _METHODS),
    "PEAKVAE": Family(_peakvae, _METHODS),
    "VAEC": Family(_vaec, _METHODS),
    "TOTALVAE": Family(_totalvae, _METHODS),
}


# The data of a trained object.

# The most cells that are taken from an object's own data.
_CELLS = 64


def object_data(model: Any, example: Tensor | None) -> ObjectData | None:
    """Return the data that a trained object of scvi.model has for its module; None for another object.

    Args:
        model: the object, with its AnnData.
        example: counts [n, gene], where the caller gives some; else cells of the object's own.
    """
    manager, module = getattr(model, "adata_manager", None), getattr(model, "module", None)
    if manager is None or _kind(module) is None:
        return None
    own = manager.get_from_registry("X")
    count = own.shape[0]
    if example is None:
        rows = np.unique(np.linspace(0, count - 1, _CELLS).astype(int))
        x = torch.as_tensor(_dense(own[rows]), dtype=torch.float32)
    else:
        x = example
        rows = np.arange(len(x)) % count
    taken = _taken(module, manager.data_registry)
    fields = {name: torch.as_tensor(_FIELDS[field](manager, rows, x)) for name, field in taken.items()}
    names = {}
    for name, key in (("batch_index", "batch"), ("y", "labels")):
        if name in fields:
            names[name] = [str(each) for each in manager.get_state_registry(key).categorical_mapping]
    return ObjectData(x, fields, names)


def _kind(module: Any) -> str | None:
    """The name of the class of the library that a module is of, or derives from; None if it is no such module."""
    names = (cls.__name__ for cls in type(module).__mro__ if cls.__module__.partition(".")[0] == "scvi")
    return next((name for name in names if name in MODELS), None)


def _taken(module: Any, registry: Any) -> dict[str, str]:
    """The conditions that a module's functions take, each with the field that it is read from."""
    kind = _kind(module)
    taken = {}
    if (_batches(module) if kind == "PEAKVAE" else module.n_batch) > 1:
        taken["batch_index"] = "batch_index"
    if kind == "VAEC":
        return {**taken, "y": "y", "library": "total"}
    if kind == "TOTALVAE":
        taken |= {"proteins": "proteins", "library": "total"}
    elif kind != "PEAKVAE":
        size = "size_factor" if module.use_size_factor_key else "library"
        taken[size] = size
        if module.dispersion == "gene-label":
            taken["y"] = "y"
    covariates = {"cont_covs": "extra_continuous_covs", "cat_covs": "extra_categorical_covs"}
    return {**taken, **{name: name for name, key in covariates.items() if key in registry}}


def _batches(module: Any) -> int:
    """The number of batches that the decoder of a PEAKVAE tells apart."""
    categories = module.z_decoder.px_decoder.n_cat_list
    return int(categories[0]) if categories else 0


def _dense(values: Any) -> Any:
    return values.toarray() if hasattr(values, "toarray") else np.asarray(values)


def _field(key: str, dtype: Any) -> Callable[[Any, Any, Tensor], Any]:
    return lambda manager, rows, x: _dense(manager.get_from_registry(key))[rows].astype(dtype)


_FIELDS: Mapping[str, Callable[[Any, Any, Tensor], Any]] = {
    "batch_index": lambda manager, rows, x: _field("batch", np.int64)(manager, rows, x).reshape(-1),
    "y": lambda manager, rows, x: _field("labels", np.int64)(manager, rows, x).reshape(-1),
    "library": lambda manager, rows, x: x.sum(1, keepdim=True).clamp(min=1).log(),
    "total": lambda manager, rows, x: x.sum(1, keepdim=True),
    "size_factor": lambda manager, rows, x: np.log(_field("size_factor", np.float32)(manager, rows, x).reshape(-1, 1)),
    "cont_covs": _field("extra_continuous_covs", np.float32),
    "cat_covs": _field("extra_categorical_covs", np.int64),
    "proteins": _field("proteins", np.float32),
}
