"""Graphs that exist already are compared with the model that they were made from."""

import numpy as np
import pytest
import torch
from makers import FLOAT, INT, decoder, encoder, saved
from safetensors.torch import save_file
from torch import nn

import vae_runtime
from vae_export import ExportError, adopt
from vae_export.cli import main
from vae_export.errors import ParityError


class Labelled(nn.Module):
    """A VAE of six numbers under a label."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 6)
        self.enter, self.leave = nn.Linear(6, 4, bias=False), nn.Linear(8, 6, bias=False)

    def encode(self, x, label):
        mu, logvar = self.enter(x + self.table(label)).chunk(2, 1)
        return mu, logvar

    def decode(self, z, label):
        return torch.sigmoid(self.leave(torch.cat([z, self.table(label)], 1)))


class Pictures(nn.Module):
    """Convolutions that halve height and width, whose graphs `makers` writes."""

    def __init__(self, kernels):
        super().__init__()
        self.enter = nn.Conv2d(3, 8, 2, 2, bias=False)
        self.leave = nn.ConvTranspose2d(4, 3, 2, 2, bias=False)
        self.enter.weight.data, self.leave.weight.data = (torch.from_numpy(kernel) for kernel in kernels)

    def encode(self, x):
        return torch.tanh(self.enter(x)).chunk(2, 1)

    def decode(self, z):
        return self.leave(z)


class Plain(Labelled):
    """Another model: its encoder takes no label."""

    def encode(self, x):
        mu, logvar = self.enter(x).chunk(2, 1)
        return mu, logvar


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Labelled().eval()


@pytest.fixture
def graphs(model, tmp_path):
    """Its two graphs."""
    weights = {
        "table": model.table.weight.detach().numpy(),
        "in": model.enter.weight.detach().numpy().T.copy(),
        "out": model.leave.weight.detach().numpy().T.copy(),
        "half": np.array([2, 2]),
    }

    def chosen(*names):
        return {name: weights[name] for name in names}

    label = ("label", INT, ["b"])
    coder = saved(
        tmp_path / "e.onnx",
        [
            ("Gather", ["table", "label"], ["row"]),
            ("Add", ["x", "row"], ["s"]),
            ("MatMul", ["s", "in"], ["p"]),
            ("Split", ["p", "half"], ["mu", "logvar"], {"axis": 1}),
        ],
        [("x", FLOAT, ["b", 6]), label],
        [("mu", FLOAT, ["b", 2]), ("logvar", FLOAT, ["b", 2])],
        chosen("table", "in", "half"),
    )
    back = saved(
        tmp_path / "d.onnx",
        [
            ("Gather", ["table", "label"], ["row"]),
            ("Concat", ["z", "row"], ["s"], {"axis": 1}),
            ("MatMul", ["s", "out"], ["m"]),
            ("Sigmoid", ["m"], ["x_hat"]),
        ],
        [label, ("z", FLOAT, ["b", 2])],
        [("x_hat", FLOAT, ["b", 6])],
        chosen("table", "out"),
    )
    return coder, back


LABELS = {"conditions": {"label": [0, 1, 2]}, "likelihood": "bernoulli"}


def test_golden_vectors_are_the_answers_of_the_model(model, graphs, tmp_path):
    adopted = adopt(graphs, tmp_path / "out", model=model, prior="normal", **LABELS)
    assert "checked: Labelled, in PyTorch" in adopted.recognised
    manifest = vae_runtime.load(adopted.path).manifest
    assert manifest.producer["compared"] == "two files"
    assert manifest.producer["torch"] == torch.__version__
    assert "adopted" not in manifest.producer
    assert "from PyTorch" in str(vae_runtime.verify(adopted.path))
    card = (adopted.path / "README.md").read_text(encoding="utf-8")
    assert "Adopted from two files, and compared with the model itself in PyTorch." in card
    golden = np.load(adopted.path / "golden.npz")
    x, label = (torch.from_numpy(golden[name]) for name in ("x", "label"))
    with torch.no_grad():
        assert np.array_equal(golden["encoder/pytorch/mu"], model.encode(x, label)[0].numpy())


def test_a_model_that_computes_something_else_is_refused(model, graphs, tmp_path):
    model.leave.weight.data *= 1.001
    with pytest.raises(ParityError, match=r"decoder/fp32 x_hat .*values disagree"):
        adopt(graphs, tmp_path / "out", model=model, **LABELS)
    other = Plain()
    other.load_state_dict(model.state_dict())
    with pytest.raises(
        ExportError, match=r"encoder takes x, label and gives mu, logvar, std, .*got x and mu, logvar, "
    ):
        adopt(graphs, tmp_path / "out", model=other, **LABELS)
    assert not (tmp_path / "out").exists()


def test_tiles_are_measured_by_the_model(tmp_path):
    kernels = [np.random.default_rng(0).normal(size=(*ends, 2, 2)).astype(np.float32) for ends in ((8, 3), (4, 3))]
    paths = encoder(tmp_path / "e.onnx"), decoder(tmp_path / "d.onnx")
    import onnx

    for path, kernel in zip(paths, kernels, strict=True):
        graph = onnx.load(path)
        graph.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(kernel, "k"))
        onnx.save(graph, path)
    arguments = {"shape": (3, 8, 8), "posterior": "logvar", "prior": "normal"}
    alone = adopt(paths, tmp_path / "alone", **arguments)
    assert "tiles: not measured; tile_blend divides arrays into tiles that change values" in alone.recognised
    adopted = adopt(paths, tmp_path / "out", model=Pictures(kernels), **arguments)
    vae = vae_runtime.load(adopted.path)
    assert {tiles.component: dict(tiles.halo) for tiles in vae.manifest.tiles} == {
        component: {"height": 0, "width": 0} for component in ("encoder", "decoder")
    }
    z = np.random.default_rng(1).normal(size=(1, 4, 4, 8)).astype(np.float32)
    assert np.allclose(vae.decode(z, tile=4), vae.decode(z), atol=1e-6)


def test_the_command_takes_a_model_and_its_weights(model, graphs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_file(model.state_dict(), "w.safetensors")
    np.save("label.npy", np.array([0, 1, 2]))
    command = ["adopt", *map(str, graphs), "--condition", "label=label.npy", "--likelihood", "bernoulli"]
    named = ["--model", f"{Labelled.__module__}:Labelled", "--weights", "w.safetensors"]
    assert main([*command, *named, "--out", "out"]) == 0
    assert "not checked" not in capsys.readouterr().out
    assert main([*command, *named[:2], "--out", "other"]) == 1
    assert "values disagree" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, *named[2:], "--out", "other"])
    assert "--weights: allowed only with --model" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_graphs_in_float16_are_not_compared(tmp_path):
    paths = encoder(tmp_path / "e.onnx", kind=10), decoder(tmp_path / "d.onnx", kind=10)
    with pytest.raises(ExportError, match="model: expected graphs of float32 to compare with it, got float16"):
        adopt(paths, tmp_path / "out", model=nn.Identity(), shape=(3, 8, 8), posterior="logvar")
