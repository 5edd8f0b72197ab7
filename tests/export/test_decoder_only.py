"""Bundles of a decoder alone: `export(model, out, latents=z)`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import vae_runtime
from vae_export.cli import main
from vae_export.errors import ExportError
from vae_export.exporting import export
from vae_export.graphs.graph import EXECUTORS
from vae_export.parity.bundle import golden_runner
from vae_export.sources import Examples, model_source
from vae_export.understand.declaration import Declaration
from vae_export.understand.state import unchanged
from vae_export.understood import understand_source
from vae_runtime.errors import BundleError, InputError
from vae_runtime.verification import verify

Z = torch.randn(12, 5, generator=torch.Generator().manual_seed(3))


class Generator(nn.Module):
    """A plain module from latents to pictures."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, channels * 4), nn.ConvTranspose2d(channels, 1, 4, 4)
        self.shape = channels, 2, 2

    def forward(self, z):
        return torch.sigmoid(self.last(torch.relu(self.first(z)).unflatten(1, self.shape)))


class Sampled(nn.Module):
    """A decoder beside other layers, whose own `sample` draws standard normal latents."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.decoder, self.encoder, self.factor = nn.Linear(5, 7), nn.Linear(7, 10), factor

    def decode(self, z):
        return None, self.decoder(z)

    def sample(self, n):
        return self.decode(self.factor * torch.randn(n, 5))[1]


class Levels(nn.Module):
    """Codes of two levels, decoded by one method with a list."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.coarse, self.fine, self.head = nn.Embedding(11, 4), nn.Embedding(17, 4), nn.Linear(4, 6)

    def decode(self, codes):
        return self.head(self.coarse(codes[0]).sum(1) + self.fine(codes[1]).sum(1))


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.table, self.head = nn.Embedding(3, 5), nn.Linear(5, 6)

    def decode(self, z, label):
        return self.head(z + self.table(label))


def understood(model, latents=Z, conditions=None, **declaration):
    source = model_source(model, Declaration(**declaration), Examples(latents=latents, conditions=conditions), None)
    with unchanged(source.model):
        return understand_source(source)


def test_a_generator_becomes_a_bundle_without_an_encoder(tmp_path):
    model = Generator()
    exported = export(
        model, tmp_path / "b", latents=Z, prior="normal", likelihood="bernoulli", variants=("fp32", "fp16", "int8")
    )
    assert exported.parity.passed
    assert "decode: Generator.forward" in exported.recognised
    vae = vae_runtime.load(tmp_path / "b")
    assert set(vae.manifest.components) == {"decoder"}
    assert set(vae.manifest.decoder) == {"fp32", "fp16", "int8", "torchscript"}
    assert vae.manifest.latent.posterior.reason == "the model was exported without an encoder"
    quality = vae.manifest.decoder["int8"].quality
    assert quality is not None
    assert quality.measured == "6 latents of the caller's, others"
    assert quality.reason == "the model was exported without an encoder"
    z = vae.prior(3, seed=1)
    with torch.no_grad():
        expected = model(torch.from_numpy(z)).numpy()
    assert np.abs(vae.sample(3, seed=1) - expected).max() < 1e-5
    assert set(np.unique(vae.sample(3, seed=1, observe=True))) == {0.0, 1.0}
    verified = verify(tmp_path / "b", runners=dict.fromkeys(EXECUTORS, golden_runner))
    assert all(check.passed for check in verified.checks)
    assert any("decoder/torchscript" in check.what for check in verified.checks)
    assert (tmp_path / "b/samples.png").is_file()
    card = (tmp_path / "b/README.md").read_text()
    assert f"A decoder, exported without an encoder, of a model of {sum(p.numel() for p in model.parameters())}" in card
    vae_runtime.pack(tmp_path / "b", tmp_path / "small.zip", only="decoder/fp16")
    for place in ("b", "small.zip"):
        for use in ("encode", "reconstruct", "score", "transform"):
            with pytest.raises(BundleError, match="exported without an encoder, so encode, reconstruct and score are"):
                getattr(vae_runtime.load(tmp_path / place), use)(expected)


@pytest.mark.parametrize(
    ("factor", "kind", "line"),
    [(1.0, "normal", "prior: normal, as Sampled.sample draws it"), (0.5, "mixture", "prior: a normal with a mean")],
)
def test_its_own_sampler_shows_the_prior_of_a_decoder(factor, kind, line):
    adapted = understood(Sampled(factor))
    assert adapted.signature.latent.prior.kind == kind
    assert any(each.startswith(line) for each in adapted.recognised)
    assert "decode: item 2 of its answer is the observation, [7]" in adapted.recognised
    assert any("since decode does not read them: encoder.weight" in each for each in adapted.recognised)


def test_without_evidence_a_decoder_has_no_prior_until_one_is_fitted():
    adapted = understood(Generator())
    prior = adapted.signature.latent.prior
    assert (prior.kind, prior.reason) == ("none", "nothing shows which latents the decoder is sampled from")
    fitted = understood(Generator(), prior="diagonal")
    assert fitted.signature.latent.prior.kind == "mixture"
    assert "prior: diagonal, fitted to 12 latents" in fitted.recognised
    stated = understood(Generator(), prior="none").signature.latent.prior
    assert stated.reason == "the model was exported without an encoder, and no prior was stated"


def test_logits_need_no_example_within_the_range_of_the_likelihood():
    adapted = understood(nn.Sequential(nn.Linear(5, 8)), likelihood="bernoulli", prior="normal")
    assert adapted.signature.likelihood.logits == "logits"
    assert adapted.signature.observation.range == (0.0, 1.0)


def test_several_codes_are_several_latents_of_a_decoder():
    coarse, fine = torch.arange(12).view(4, 3) % 11, torch.arange(16).view(4, 4) % 17
    adapted = understood(Levels(), {"coarse": coarse, "fine": fine})
    assert [(z.name, z.shape, z.posterior.codebook) for z in adapted.signature.latents] == [
        ("coarse", (3,), 11),
        ("fine", (4,), 17),
    ]
    assert "decode: takes the codes as one list" in adapted.recognised
    assert adapted.signature.observation.shape == (6,)


def test_a_decoder_takes_conditions_by_name():
    adapted = understood(Conditional(), conditions={"label": torch.arange(12) % 3}, prior="normal")
    (condition,) = adapted.signature.conditions
    assert (condition.name, condition.components) == ("label", ("decoder",))
    with pytest.raises(ExportError, match=r"decode: also takes label; pass conditions=\{'label': …\}"):
        understood(Conditional())
    with pytest.raises(ExportError, match="condition 'other': encode and decode do not depend on it"):
        understood(Generator(), conditions={"other": torch.ones(12)})


class Fails(nn.Module):
    def decode(self, z):
        raise ValueError("wrong number of channels")


def test_a_decode_that_fails_is_refused_with_its_reason():
    with pytest.raises(ExportError, match=r"decode: fails on latents \[12, 5\]: wrong number of channels"):
        understood(Fails())


@pytest.mark.parametrize(
    ("examples", "declaration", "message"),
    [
        (Examples(latents=Z, example=Z), {}, "example: expected nothing for a decoder alone"),
        (Examples(latents=Z, observations=Z), {}, "observations: expected nothing for a decoder alone"),
        (Examples(latents=Z), {"encode": "encode"}, "encode: expected nothing for a decoder alone"),
        (Examples(latents=Z), {"posterior": "codes"}, "posterior: expected nothing for a decoder alone"),
        (Examples(latents=Z), {"dynamic": ("height",)}, "dynamic: expected nothing for a decoder alone"),
        (Examples(latents={}), {}, "latents: expected examples of at least one latent, got none"),
        (Examples(latents=Z[:, 0]), {}, r"latents\['z'\]: expected \[12, …\] as the first, got \[12\]"),
        (Examples(latents={"a": Z, "b": Z[:3]}), {}, r"latents\['b'\]: expected \[12, …\] as the first, got \[3, 5\]"),
        (Examples(latents={"x": Z}), {}, "latents: expected names .*, got 'x'"),
        (Examples(latents={"a b": Z}), {}, "latents: expected names .*, got 'a b'"),
        (Examples(latents=Z, conditions={"c": Z[:2]}), {}, "expected 12 rows, as the latents have, got 2"),
        (Examples(), {}, "pass some with example=, or latents= for a decoder alone"),
    ],
)
def test_what_a_decoder_alone_does_not_take_is_named(examples, declaration, message):
    with pytest.raises(InputError, match=message):
        model_source(Generator(), Declaration(**declaration), examples, None)


def test_the_command_exports_a_decoder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "small_generator.py").write_text("from torch import nn\n\nGenerator = lambda: nn.Linear(5, 3)\n")
    np.save("z.npy", Z.numpy())
    arguments = ["export", "--model", "small_generator:Generator", "--out", "b", "--formats", "onnx"]
    with pytest.raises(SystemExit):
        main(arguments)
    assert "--example is missing, or --latents for a decoder alone" in capsys.readouterr().err
    assert main([*arguments, "--latents", "z.npy", "--prior", "normal"]) == 0
    assert vae_runtime.load("b").sample(2, seed=0).shape == (2, 3)


def test_tests_see_a_decoder_that_differs():
    """The comparisons of this file can fail: another generator gives other pictures."""
    one, other = Generator(), Generator(channels=8)
    assert (one(Z) - other(Z)).abs().max() > 1e-3
