"""Models whose graphs cannot have a free batch are exported for one row, and run row by row."""

import numpy as np
import pytest
import torch
from torch import nn

import vae_export
import vae_runtime
from vae_export import ExportError

X = torch.rand(6, 12, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Linear(12, 8), nn.Linear(4, 12)

    def encode(self, x):
        return self.body(x).chunk(2, -1)

    def decode(self, z):
        return torch.sigmoid(self.head(z))

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar))


class InALoop(Plain):
    """Decodes each latent by itself, as some video decoders do to save memory."""

    def decode(self, z):
        return torch.cat([super(InALoop, self).decode(row) for row in z.split(1)])


class Counting(Plain):
    """Asks for the batch as a number of Python's."""

    def decode(self, z):
        return super().decode(z).reshape(int(z.shape[0]), 3, 4).flatten(1)


class Encoding(Plain):
    """Encodes each observation by itself."""

    def encode(self, x):
        rows = [super(Encoding, self).encode(row[None]) for row in x.unbind(0)]
        return torch.cat([row[0] for row in rows]), torch.cat([row[1] for row in rows])


class Coupled(Plain):
    """Decodes rows by themselves, and then subtracts their mean."""

    def decode(self, z):
        rows = torch.cat([super(Coupled, self).decode(row) for row in z.split(1)])
        return rows - rows.mean(0)


@pytest.mark.long
@pytest.mark.parametrize(("cls", "component"), [(InALoop, "decoder"), (Encoding, "encoder")])
def test_a_loop_over_rows_is_exported_for_one(cls, component, tmp_path, capfd):
    model = cls()
    variants = ("fp32", "int8") if component == "decoder" else ("fp32",)
    exported = vae_export.export(model, tmp_path / "b", example=X, variants=variants, min_psnr=0)
    assert exported.parity.passed
    assert f"{component}: exported for one row, and run row by row: " in capfd.readouterr().err
    vae = vae_runtime.load(tmp_path / "b")
    assert vae.manifest.batch_of_one == (component,)
    assert vae_runtime.verify(tmp_path / "b").passed
    assert f"The graphs of the {component} take one row" in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")
    with torch.no_grad():
        mean, logvar = model.encode(X)
        assert np.abs(vae.encode(X.numpy()).mean - mean.numpy()).max() < 1e-5
        assert np.abs(vae.encode(X.numpy()).logvar - logvar.numpy()).max() < 1e-5
        z = vae.prior(70, seed=1)
        assert np.abs(vae.decode(z) - model.decode(torch.from_numpy(z)).numpy()).max() < 1e-5


def test_a_size_that_can_be_traced_keeps_a_free_batch(tmp_path):
    vae_export.export(Counting(), tmp_path / "b", example=X)
    assert vae_runtime.load(tmp_path / "b").manifest.batch_of_one == ()


def test_rows_that_influence_each_other_are_refused(tmp_path):
    with pytest.raises(ExportError, match="rows of a batch influence each other"):
        vae_export.export(Coupled(), tmp_path / "b", example=X)
    assert not (tmp_path / "b").exists()


def test_what_one_row_does_not_mend_keeps_its_reason(tmp_path):
    class Broken(InALoop):
        def decode(self, z):
            return torch.cat([row if row.sum() > 1 else -row for row in super().decode(z).split(1)])

    with pytest.raises(ExportError, match=r"torch\.where"):
        vae_export.export(Broken(), tmp_path / "b", example=X)


class OfASequence(Plain):
    """Reads and writes a sequence with PyTorch's own transformers, which have an operator for evaluation alone."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.zeros(1, 1, 8))
        reading = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.1)
        self.reading = nn.TransformerEncoder(reading, 1, enable_nested_tensor=False)
        self.writing = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.body, self.opened = nn.Linear(8, 8), nn.Linear(4, 24)

    def encode(self, x):
        read = self.reading(torch.cat([self.first.expand(len(x), -1, -1), x], 1))
        return super().encode(read[:, 0])

    def decode(self, z):
        return self.writing(self.opened(z).unflatten(1, (3, 8)))


@pytest.mark.long
def test_layers_of_a_transformer_have_a_free_batch(tmp_path, capfd):
    x = torch.rand(6, 3, 8, generator=torch.Generator().manual_seed(0))
    fast = torch.backends.mha.get_fastpath_enabled()
    exported = vae_export.export(OfASequence().eval(), tmp_path / "b", example=x, formats=("onnx",))
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert exported.parity.passed
    assert "row by row" not in capfd.readouterr().err
    manifest = vae_runtime.load(tmp_path / "b").manifest
    assert {graphs["fp32"].exporter for graphs in (manifest.encoder, manifest.decoder)} == {
        "torch.onnx.export(dynamo=True)"
    }
