"""Bundles in optimum's layout: written by pack, and adopted again."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from makers import decoder, encoder, floats

import vae_runtime
from vae_export import adopt
from vae_runtime import InputError, pack
from vae_runtime.cli.main import main


@pytest.fixture(params=["optimum's names", "other names"])
def bundle(request, tmp_path):
    """A bundle of convolutions whose tensors have optimum's names, or others."""
    same = request.param == "optimum's names"
    names = ("sample", "latent_sample", "sample") if same else ("x", "z", "x_hat")
    paths = (
        encoder(tmp_path / "e.onnx", "latent_parameters" if same else "moments", taken=names[0]),
        decoder(tmp_path / "d.onnx", names[2], taken=names[1]),
    )
    values = {"shape": (3, 8, 16), "posterior": "logvar", "range": None if same else (-1, 1)}
    return adopt(paths, tmp_path / "bundle", latent_scale=0.5, latent_shift=2, **values).path


def run(path, **feeds):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (output,) = session.get_outputs()
    return output.name, session.run(None, feeds)[0]


def test_the_graphs_are_optimums(bundle, tmp_path):
    vae = vae_runtime.load(bundle)
    assert pack(bundle, tmp_path / "out", layout="optimum") == vae.digest
    files = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == {f"vae_{part}/{name}" for part in ("encoder", "decoder") for name in ("model.onnx", "config.json")}
    for shape in ((2, 3, 8, 16), (1, 3, 16, 16)):
        x = np.clip(floats(*shape), -1, 1)
        q = vae.encode(x)
        name, parameters = run(tmp_path / "out/vae_encoder/model.onnx", sample=x)
        assert name == "latent_parameters"
        assert np.array_equal(parameters, np.concatenate([q.mean, q.logvar], axis=1))
        name, decoded = run(tmp_path / "out/vae_decoder/model.onnx", latent_sample=q.mean)
        assert name == "sample"
        assert np.array_equal(decoded, vae.decode(q.mean))
    config = json.loads((tmp_path / "out/vae_decoder/config.json").read_text())
    assert (config["in_channels"], config["latent_channels"], config["sample_size"]) == (3, 4, [8, 16])
    assert (config["scaling_factor"], config["shift_factor"]) == (0.5, 2.0)
    assert 2 ** (len(config["block_out_channels"]) - 1) == 2


def test_what_was_written_is_adopted_again(bundle, tmp_path):
    assert main(["pack", str(bundle), "--layout", "optimum", "--out", str(tmp_path / "out")]) == 0
    before, again = vae_runtime.load(bundle), vae_runtime.load(adopt(tmp_path / "out", tmp_path / "again").path)
    x = np.clip(floats(2, 3, 8, 16), -1, 1)
    for name in ("mean", "logvar", "std"):
        assert np.allclose(getattr(before.encode(x), name), getattr(again.encode(x), name), atol=1e-6)
    assert np.array_equal(before.decode(before.encode(x).mean), again.decode(before.encode(x).mean))
    latents = [vae.manifest.latent for vae in (before, again)]
    assert latents[0].dynamic == latents[1].dynamic
    assert [(latent.scale, latent.shift) for latent in latents] == [(0.5, 2.0)] * 2
    # The one fixture has no prior and no range, and the other has both.
    assert latents[0].prior.kind == latents[1].prior.kind
    assert latents[0].prior.assumed == latents[1].prior.assumed
    assert before.manifest.observation.range == again.manifest.observation.range
    assert {"none": None, "normal": (-1.0, 1.0)}[latents[0].prior.kind] == before.manifest.observation.range


def test_a_latent_without_a_distribution_and_scales_by_channel(tmp_path):
    paths = encoder(tmp_path / "e.onnx", "mean", 4, (1, 3, 8, 8)), decoder(tmp_path / "d.onnx")
    scales = {"latent_scale": [1.0, 2.0, 4.0, 8.0], "latent_shift": [0.0, 0.0, 1.0, 1.0]}
    bundle = adopt(paths, tmp_path / "bundle", **scales).path
    pack(bundle, tmp_path / "out", layout="optimum")
    x = floats(1, 3, 8, 8)
    name, value = run(tmp_path / "out/vae_encoder/model.onnx", sample=x)
    assert name == "latent_sample"
    assert np.array_equal(value, vae_runtime.load(bundle).encode(x).mode())
    latent = vae_runtime.load(adopt(tmp_path / "out", tmp_path / "again").path).manifest.latent
    assert (latent.scale, latent.shift) == ((1.0, 2.0, 4.0, 8.0), (0.0, 0.0, 1.0, 1.0))


def test_what_the_layout_cannot_hold(root, bundle, tmp_path):
    models = root / "models"
    pack(bundle, tmp_path / "decoder", only="decoder")
    paths = encoder(tmp_path / "e.onnx"), decoder(tmp_path / "d.onnx")
    adopt(paths, tmp_path / "positive", shape=(3, 8, 8), range=(0, 1))
    paths = encoder(tmp_path / "e3.onnx", stride=3), decoder(tmp_path / "d3.onnx", stride=3)
    adopt(paths, tmp_path / "thirds", shape=(3, 9, 9))
    for path, words in (
        (models / "digits", "one with latents [8] instead of [channel, height, width]"),
        (models / "digits-conditional", "one with the condition label"),
        (tmp_path / "decoder", "one without the encoder"),
        (tmp_path / "positive", "one of observations from 0 to 1: readers of the layout give -1 to 1"),
        (tmp_path / "thirds", "one that makes latents [4, 3, 3] of [3, 9, 9]: readers of the layout expect"),
    ):
        with pytest.raises(InputError) as caught:
            pack(path, tmp_path / "out", layout="optimum")
        assert f"expected a bundle that optimum's layout can hold, got {words}" in str(caught.value)
    for arguments, words in (
        ({"layout": "flat"}, "layout: expected optimum, got 'flat'"),
        ({"layout": "optimum", "only": "decoder"}, "only: expected nothing beside a layout, got only=; leave it out"),
    ):
        with pytest.raises(InputError, match=words):
            pack(bundle, tmp_path / "out", **arguments)
    with pytest.raises(InputError, match="expected a folder for the layout optimum"):
        pack(bundle, tmp_path / "out.zip", layout="optimum")
    assert not (tmp_path / "out").exists()


def test_what_was_written_is_replaced_by_force(bundle, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["pack", str(bundle), "--layout", "optimum", "--out", str(out)]
    assert main(command) == 0
    (out / "vae_decoder" / "config.json").write_bytes(b"{}")
    assert main(command) == 1
    assert main([*command, "--force"]) == 0
    assert b"sample_size" in (out / "vae_decoder" / "config.json").read_bytes()
    (out / "notes.txt").write_bytes(b"")
    assert main([*command, "--force"]) == 1
    assert f"{out}: is not a sound bundle" in capsys.readouterr().err
    assert (out / "notes.txt").exists()


def test_an_option_beside_the_layout_is_misuse(bundle, tmp_path, capsys):
    for option in (["--only", "decoder"], ["--operators"], ["--onnx-tests"]):
        with pytest.raises(SystemExit) as caught:
            main(["pack", str(bundle), "--layout", "optimum", *option, "--out", str(tmp_path / "out")])
        assert caught.value.code == 2
        assert f"error: {option[0]}: not allowed with --layout; leave it out\n" in capsys.readouterr().err


def test_a_name_that_the_graph_has_inside_is_refused(tmp_path, resign):
    """An encoder that computes a tensor called sample of its input x."""
    paths = encoder(tmp_path / "e.onnx", taken="x"), decoder(tmp_path / "d.onnx")
    bundle = adopt(paths, tmp_path / "bundle", shape=(3, 8, 8)).path
    path = bundle / "encoder/fp32/model.onnx"
    model = onnx.load(path)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = "sample" if name == "inner.c" else name
    path.write_bytes(model.SerializeToString())
    resign(bundle)
    with pytest.raises(InputError, match=r"layout: expected graphs that take optimum's names: .*each name defined"):
        pack(bundle, tmp_path / "out", layout="optimum")
