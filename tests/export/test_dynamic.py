"""Dynamic axes: the sizes that passed are recorded, kept by the runtime, and not taken on trust from an exporter."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import vae_export
import vae_runtime
from vae_export import ExportError, ParityError
from vae_export.graphs import onnx_export as graphs
from vae_export.parity import comparison
from vae_export.parity.comparison import Comparison
from vae_export.sources import Examples, model_source
from vae_export.understand.declaration import Declaration
from vae_export.understand.state import unchanged
from vae_export.understood import understand_source
from vae_runtime.errors import InputError
from vae_runtime.manifest import Sizes


class Convolutions(nn.Module):
    """Halves height and width twice: any multiple of 4 works, and nothing else comes back at its own size."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.SiLU(), nn.Conv2d(4, 4, 4, 2, 1))
        self.up = nn.Sequential(nn.ConvTranspose2d(2, 4, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(4, 1, 4, 2, 1))

    def encode(self, x):
        return self.down(x).chunk(2, 1)

    def decode(self, z):
        return self.up(z)


class Frozen(Convolutions):
    """Right in PyTorch at every size; a tracer freezes the number that it makes of the height."""

    def decode(self, z):
        x = self.up(z)
        return x + torch.from_numpy(np.full((1, 1, int(z.shape[2]) * 4, 1), 0.5, np.float32))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    x = torch.rand(3, 1, 16, 24, generator=torch.Generator().manual_seed(2))
    out = tmp_path_factory.mktemp("dynamic") / "bundle"
    model = Convolutions()
    done = vae_export.export(model, out, example=x, posterior="logvar", dynamic=("height", "width"))
    return model, done


def test_the_sizes_that_passed_are_recorded(exported):
    vae = json.loads((exported[1].path / "manifest.json").read_text())["additional_metadata"]["vae"]
    assert vae["observation"]["dynamic"] == {
        "height": {"min": 4, "max": 32, "step": 4},
        "width": {"min": 4, "max": 48, "step": 4},
    }
    assert vae["latents"][0]["dynamic"]["height"]["max"] == 8
    assert {tensor.sizes for tensor in exported[1].parity.tensors} != {""}


def test_the_runtime_takes_them_and_no_others(exported):
    model, done = exported
    vae = vae_runtime.load(done.path)
    assert vae_runtime.verify(done.path).passed
    x = np.random.default_rng(0).random((2, 1, 28, 8), np.float32)
    with torch.no_grad():
        mean = model.encode(torch.from_numpy(x))[0]
        expected = model.decode(mean).numpy()
    np.testing.assert_allclose(vae.encode(x).mean, mean.numpy(), atol=1e-6)
    np.testing.assert_allclose(vae.reconstruct(x), expected, atol=1e-6)
    assert vae.sample(1, seed=0, latent_shape=(2, 3, 9)).shape == (1, 1, 12, 36)
    for height in (30, 36):
        with pytest.raises(InputError, match="height"):
            vae.encode(np.zeros((1, 1, height, 8), np.float32))


class Causal(nn.Module):
    """Keeps the first frame, and makes one latent of each `factor` frames that follow: factor · k + 1 frames."""

    def __init__(self, factor=4):
        super().__init__()
        torch.manual_seed(0)
        self.factor = factor
        self.down, self.up = nn.Conv1d(2, 4, factor, factor), nn.Conv1d(2, 2, 1)

    def encode(self, x):
        return self.down(torch.cat([x[:, :, :1].repeat(1, 1, self.factor - 1), x], dim=2)).chunk(2, 1)

    def decode(self, z):
        return self.up(z).repeat_interleave(self.factor, dim=2)[:, :, self.factor - 1 :]


FRAMES = {"posterior": "logvar", "axes": ("channel", "frame"), "latent_axes": ("channel", "frame")}


@pytest.mark.long
def test_frames_may_have_an_offset(tmp_path):
    x = torch.rand(3, 2, 9, generator=torch.Generator().manual_seed(2))
    model = Causal()
    done = vae_export.export(model, tmp_path / "b", example=x, formats=("onnx",), dynamic=("frame",), **FRAMES)
    vae = vae_runtime.load(done.path)
    assert vae.manifest.observation.dynamic == {"frame": Sizes(5, 17, 4)}
    assert vae.manifest.latent.dynamic == {"frame": Sizes(2, 5)}
    assert all("5 … 17 in steps of 4, are no multiples" in tiles.reason for tiles in vae.manifest.tiles)
    y = np.random.default_rng(0).random((2, 2, 13), np.float32)
    with torch.no_grad():
        expected = model.decode(model.encode(torch.from_numpy(y))[0]).numpy()
    np.testing.assert_allclose(vae.reconstruct(y), expected, atol=1e-6)
    for frames in (1, 8, 12, 16, 21):
        with pytest.raises(InputError, match=f"frame {frames} was not proven"):
            vae.encode(np.zeros((1, 2, frames), np.float32))


@pytest.mark.parametrize(
    ("factor", "frames", "sizes"),
    [(2, 5, Sizes(3, 9, 2)), (3, 7, Sizes(4, 13, 3)), (8, 9, Sizes(9, 17, 8)), (1, 6, Sizes(2, 12))],
)
def test_the_probe_finds_the_offset(factor, frames, sizes):
    model = Causal(factor).eval()
    source = model_source(model, Declaration(dynamic=("frame",), **FRAMES), Examples(torch.rand(3, 2, frames)), None)
    with unchanged(model):
        assert understand_source(source).signature.observation.dynamic == {"frame": sizes}


@pytest.mark.long
def test_a_size_that_exporters_may_freeze_is_refused_or_right(tmp_path):
    """How far exporters follow Python's own numbers changes from version to version; a wrong graph is never written."""
    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    arguments = {"example": x, "posterior": "logvar", "formats": ("onnx",)}
    done, message = None, ""
    try:
        done = vae_export.export(Frozen(), tmp_path / "bundle", **arguments, dynamic=("height", "width"))
    except ExportError as error:
        message = str(error)
    if done is None:
        assert "a size that should be dynamic is frozen" in message
        assert list(tmp_path.iterdir()) == []
    else:
        z = np.ones((1, 2, 7, 5), np.float32)
        with torch.no_grad():
            expected = Frozen().decode(torch.from_numpy(z)).numpy()
        np.testing.assert_allclose(vae_runtime.load(done.path).decode(z), expected, atol=1e-6)


def test_a_size_that_a_tracer_freezes_is_found(tmp_path, monkeypatch):
    # Not by deleting: what is put back would stand last, and their order counts.
    monkeypatch.setattr(graphs, "_EXPORTERS", {"dynamo=False": graphs._EXPORTERS["dynamo=False"]})
    monkeypatch.setattr(graphs, "branch_of", lambda adapted, component: None)
    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    arguments = {"example": x, "posterior": "logvar", "formats": ("onnx",)}
    with pytest.raises(ParityError, match="height"):
        vae_export.export(Frozen(), tmp_path / "bundle", **arguments, dynamic=("height", "width"))
    assert list(tmp_path.iterdir()) == []
    assert vae_export.export(Frozen(), tmp_path / "fixed", **arguments).parity.passed


def test_a_slow_model_is_compared_at_every_batch_and_size_in_few_rows(monkeypatch):
    x = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(2))
    declaration = Declaration(posterior="logvar", dynamic=("height", "width"))
    source = model_source(Convolutions(), declaration, Examples(x), "slow")
    with unchanged(source.model):
        adapted = understand_source(source)
        shapes = []
        source.model.up.register_forward_pre_hook(lambda module, given: shapes.append(tuple(given[0].shape)))
        Comparison(adapted)
        fast, rows = set(shapes), sum(shape[0] * shape[2] * shape[3] for shape in shapes)
        shapes.clear()
        monkeypatch.setattr(comparison, "_MAX_SECONDS", 0.0)
        Comparison(adapted)
    sizes = {shape[2:] for shape in shapes}
    steps = {(5, 1), (1, 5)}
    assert sizes == {shape[2:] for shape in fast} == {(4, 4), (1, 1), (8, 8), (1, 8), (8, 1), *steps}
    assert {shape[0] for shape in shapes} == {1, 2, 3}
    assert sum(shape[0] * shape[2] * shape[3] for shape in shapes) < rows / 5


@pytest.mark.long
def test_the_older_exporter_has_its_turn_after_a_wrong_graph(tmp_path, monkeypatch):
    """The first exporter's graph is altered here; what ships is the second's, and the manifest says so."""

    def wrong(adapted, component, *, make=graphs._dynamo, **options):
        model = make(adapted, component, **options)
        for tensor in model.graph.initializer:
            if tensor.dims and tensor.data_type == 1:
                tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float32) * np.float32(1.01)).tobytes()
                break
        return model

    monkeypatch.setitem(graphs._EXPORTERS, "dynamo=True", wrong)
    x = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    done = vae_export.export(Convolutions(), tmp_path / "bundle", example=x, posterior="logvar", formats=("onnx",))
    manifest = vae_runtime.load(done.path).manifest
    assert {variant.exporter for variant in manifest.variants} == {"torch.onnx.export(dynamo=False)"}
    monkeypatch.setitem(graphs._EXPORTERS, "dynamo=False", wrong)
    with pytest.raises(ParityError, match="do not compute what PyTorch does"):
        vae_export.export(Convolutions(), tmp_path / "none", example=x, posterior="logvar", formats=("onnx",))
    assert not (tmp_path / "none").exists()
