"""Tables of ctgan's TVAE, without the library: a synthesizer of the same structure."""

from __future__ import annotations

import types

import numpy as np
import pytest
import torch
from torch import nn

import vae_runtime
from vae_export.errors import ExportError
from vae_export.exporting import export
from vae_export.sources import Examples, model_source
from vae_export.understand.declaration import Declaration
from vae_runtime.errors import InputError


class Decoder(nn.Module):
    def __init__(self, latent: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.seq = nn.Sequential(nn.Linear(latent, 16), nn.ReLU(), nn.Linear(16, width))
        self.sigma = nn.Parameter(torch.linspace(0.1, 0.4, width))

    def forward(self, z):
        return self.seq(z), self.sigma


def numbers(name, dtype, seen=None, nulls=False, own_bounds=False):
    """A column of numbers with three modes, of which the second is too light to count, as rdt keeps it."""
    transform = types.SimpleNamespace(
        STD_MULTIPLIER=4,
        valid_component_indicator=np.array([True, False, True]),
        _bgm_transformer=types.SimpleNamespace(
            means_=np.array([[30.0], [99.0], [-5.0]]), covariances_=np.array([4.0, 9.0, 0.25]).reshape(3, 1, 1)
        ),
        _dtype=np.dtype(dtype if seen is None else seen),
        null_transformer=types.SimpleNamespace(nulls=nulls),
        learn_rounding_scheme=False,
        enforce_min_max_values=own_bounds,
    )
    spans = [types.SimpleNamespace(dim=1, activation_fn="tanh"), types.SimpleNamespace(dim=2, activation_fn="softmax")]
    info = types.SimpleNamespace(column_name=name, column_type="continuous", transform=transform)
    return info, spans, np.dtype(dtype)


def categories(name, *values):
    spans = [types.SimpleNamespace(dim=len(values), activation_fn="softmax")]
    transform = types.SimpleNamespace(dummies=list(values))
    info = types.SimpleNamespace(column_name=name, column_type="discrete", transform=transform)
    return info, spans, np.dtype(object)


def synthesizer(*columns):
    infos, spans, dtypes = zip(*columns, strict=True)
    transformer = types.SimpleNamespace(
        output_info_list=spans, _column_transform_info_list=infos, _column_raw_dtypes=dtypes
    )
    width = sum(span.dim for each in spans for span in each)
    cls = type("TVAE", (types.SimpleNamespace,), {"__module__": "ctgan.synthesizers.tvae"})
    return cls(embedding_dim=4, transformer=transformer, decoder=Decoder(4, width))


@pytest.mark.long
def test_a_fitted_tvae_is_exported_with_its_table(tmp_path):
    model = synthesizer(numbers("age", "int64"), categories("city", "a", np.str_("b"), np.nan), numbers("x", "float64"))
    exported = export(model, tmp_path / "b")
    vae = vae_runtime.load(tmp_path / "b")
    assert vae.manifest.name == "TVAE"
    assert list(vae.manifest.components) == ["decoder"]
    assert vae.manifest.latent.prior.kind == "normal"
    assert "columns of its transformer" in exported.recognised[0]
    z = vae.prior(200, seed=1)
    with torch.no_grad():
        mean = torch.tanh(model.decoder.seq(torch.from_numpy(z))).numpy()
    np.testing.assert_allclose(vae.decode(z), mean, atol=1e-5)
    drawn = vae.decode(z, observe=True, seed=5)
    noisy = np.array([0, 6])
    assert np.array_equal(np.delete(drawn, noisy, 1), np.delete(vae.decode(z), noisy, 1))
    spread = (drawn - vae.decode(z))[:, noisy].std(0)
    np.testing.assert_allclose(spread, model.decoder.sigma.detach().numpy()[noisy], rtol=0.15)
    columns = vae_runtime.to_table(vae, drawn)
    means, scales = np.array([30.0, -5.0]), 4 * np.array([2.0, 0.5])
    for name, first in (("age", 0), ("x", 6)):
        mode = drawn[:, first + 1 : first + 3].argmax(1)
        expected = np.clip(drawn[:, first].astype(float), -1, 1) * scales[mode] + means[mode]
        np.testing.assert_allclose(columns[name], np.rint(expected) if name == "age" else expected, rtol=1e-12)
    assert columns["city"].tolist() == [["a", "b", None][index] for index in drawn[:, 3:6].argmax(1)]
    assert "columns = vae_runtime.to_table(vae, x)" in (tmp_path / "b/README.md").read_text()


def source_of(model, **examples):
    return model_source(model, Declaration(), Examples(**examples), None)


def test_whole_numbers_are_cast_where_the_transformer_saw_objects():
    (column,) = source_of(synthesizer(numbers("age", "int64", seen=object))).table
    assert column.rounding == "zero"


def test_a_table_of_categories_alone_has_no_noise():
    source = source_of(synthesizer(categories("c", 1, 2), categories("d", True, False)))
    assert isinstance(source.declaration.decode(torch.zeros(2, 4)), torch.Tensor)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (numbers("n", "float64", nulls=True), "column 'n': expected no missing numbers"),
        (numbers("n", "bool"), "column 'n': expected numbers, got bool; list it in discrete_columns"),
        (numbers("n", "float64", own_bounds=True), "column 'n': expected the settings of ctgan's own transformer"),
        (categories("c", (1, 2)), "column 'c': expected strings, numbers or bools as categories, got tuple"),
    ],
)
def test_columns_that_no_bundle_describes_are_refused_by_name(column, message):
    with pytest.raises(ExportError, match=message):
        source_of(synthesizer(column))


def test_a_tvae_takes_no_example_and_must_be_fitted():
    model = synthesizer(categories("c", 1, 2))
    with pytest.raises(InputError, match="example: expected nothing for a decoder alone"):
        source_of(model, example=np.zeros((2, 2), np.float32))
    model.decoder = None
    with pytest.raises(ExportError, match="ctgan TVAE: expected a fitted synthesizer; call its fit first"):
        source_of(model)
    other = type("TVAE", (types.SimpleNamespace,), {"__module__": "mine"})(decoder=nn.Linear(2, 2))
    with pytest.raises(InputError, match="example: expected observations"):
        source_of(other)
