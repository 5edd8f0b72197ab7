"""Weights beyond what one ONNX file can hold go into a file beside it; the limit is lowered here to reach it."""

import os

import numpy as np
import pytest
import torch
from torch import nn

import vae_export
import vae_runtime
from vae_export.graphs import files
from vae_export.graphs import onnx_export as graphs
from vae_runtime.errors import BundleError
from vae_runtime.places import SUMS


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(40, 2 * 16), nn.Linear(16, 40)

    def encode(self, x):
        return self.body(x).chunk(2, 1)

    def decode(self, z):
        return self.head(z)


@pytest.fixture(scope="module")
def model():
    return Wide()


@pytest.fixture
def large(model, tmp_path, monkeypatch):
    """A bundle whose weights lie beside its graphs."""
    monkeypatch.setattr(graphs, "INLINE", 500)
    monkeypatch.setattr(files, "INLINE", 500)
    x = torch.rand(4, 40, generator=torch.Generator().manual_seed(1))
    vae_export.export(model, tmp_path / "large", example=x, posterior="logvar", formats=("onnx",))
    return tmp_path / "large"


def test_weights_lie_beside_the_graph_and_are_hashed(large, model):
    files = {path.relative_to(large).as_posix() for path in large.rglob("*") if path.is_file()}
    assert {"encoder/fp32/model.onnx.data", "decoder/fp32/model.onnx.data"} <= files
    assert (large / "encoder/fp32/model.onnx.data").stat().st_size >= 40 * 32 * 4
    listed = {line.split("  ", 1)[1] for line in (large / SUMS).read_text().splitlines()}
    assert listed == files - {SUMS}
    assert vae_runtime.verify(large).passed
    z = np.linspace(-1, 1, 48, dtype=np.float32).reshape(3, 16)
    with torch.no_grad():
        expected = model.decode(torch.from_numpy(z)).numpy()
    np.testing.assert_allclose(vae_runtime.load(large).decode(z), expected, atol=1e-6)


@pytest.mark.long
def test_they_are_read_wherever_the_process_works(large, tmp_path, monkeypatch):
    """ONNX Runtime by itself would look for them in the working directory."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.onnx.data").write_bytes(bytes(10**4))
    here = vae_runtime.load(large).sample(1, seed=0)
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(vae_runtime.load(large).sample(1, seed=0), here)


def test_an_altered_byte_is_seen(large):
    place = large / "decoder/fp32/model.onnx.data"
    content = bytearray(place.read_bytes())
    content[7] ^= 1
    place.write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx\.data: expected the SHA-256"):
        vae_runtime.load(large)


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_link_in_their_place_must_lead_to_the_listed_content(large, tmp_path, link):
    place, moved = large / "decoder/fp32/model.onnx.data", tmp_path / "moved"
    place.rename(moved)
    link(moved, place)
    vae_runtime.load(large)
    moved.write_bytes(b"other weights")
    with pytest.raises(BundleError, match="expected the SHA-256"):
        vae_runtime.load(large)
