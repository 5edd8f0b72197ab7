"""Modules of the user's are trained, resumed and exported as built-in ones are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal

import vae_runtime
from vae_export import check_parity, evaluate, export
from vae_export.cli import main
from vae_export.errors import ExportError, TrainingError
from vae_export.training import checkpoint
from vae_export.training.config import DataConfig, ModelConfig, TrainConfig
from vae_export.training.data.batches import read
from vae_export.training.loop import train
from vae_export.training.model import reparameterize
from vae_export.training.own_vae import understood
from vae_export.training.randomness import generator
from vae_export.understand.declaration import Declaration
from vae_runtime import noise
from vae_runtime.errors import InputError, VaeError

TRAINING = TrainConfig(epochs=3, batch_size=64, learning_rate=3e-3, binarise="stochastic", threads=1)
GREY = dataclasses.replace(TRAINING, binarise="none")


class Dense(nn.Module):
    """As people write it: (mu, log_var), and a sigmoid in the end."""

    def __init__(self, latent=4):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.mu, self.log_var = nn.Linear(32, latent), nn.Linear(32, latent)
        self.head = nn.Sequential(nn.Linear(latent, 32), nn.ReLU(), nn.Linear(32, 64), nn.Sigmoid())

    def encode(self, x):
        h = self.body(x)
        return self.mu(h), self.log_var(h)

    def decode(self, z):
        return self.head(z).view(-1, 1, 8, 8)

    def forward(self, x):
        mu, log_var = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * log_var)), mu, log_var


class Convolutions(nn.Module):
    """Batch normalization, dropout, a latent with several axes, and a weight that nothing reads."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(8, 4, 4, 2, 1)
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(2, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.SiLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1)
        )
        self.unread = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        mean, log_var = self.encoder(x).chunk(2, 1)
        return self.decoder(mean + torch.randn_like(mean) * torch.exp(0.5 * log_var))


class WithStd(Dense):
    """The second tensor is the standard deviation, and decode returns a distribution with a learned scale."""

    def __init__(self):
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))

    def encode(self, x):
        mu, raw = super().encode(x)
        return mu, nn.functional.softplus(raw) + 1e-3

    def decode(self, z):
        mean = super().decode(z)
        return Normal(mean, self.log_scale.exp().expand_as(mean))

    def forward(self, x):
        mu, std = self.encode(x)
        return self.decode(mu + std * torch.randn_like(mu)).mean, mu, std


class TwoLatents(Dense):
    """Two latents, of which neither depends on the other."""

    def __init__(self):
        super().__init__()
        self.also = nn.Linear(32, 6)
        self.join = nn.Linear(7, 4)

    def encode(self, x):
        h = self.body(x)
        second = self.also(h)
        return (self.mu(h), self.log_var(h)), (second[:, :3], second[:, 3:])

    def decode(self, z1, z2):
        return super().decode(self.join(torch.cat([z1, z2], 1)))

    def forward(self, x):
        (m1, v1), (m2, v2) = self.encode(x)
        z1 = m1 + torch.randn_like(m1) * torch.exp(0.5 * v1)
        return self.decode(z1, m2 + torch.randn_like(m2) * torch.exp(0.5 * v2))


class Labeled(Dense):
    def decode(self, z, label):
        return super().decode(z + label[:, None])


class Whole(nn.Module):
    """No encode and no decode."""

    def __init__(self, layer=None):
        super().__init__()
        self.a, self.b, self.layer = nn.Linear(64, 8), nn.Linear(4, 64), layer or nn.Identity()

    def forward(self, x):
        mean, log_var = self.a(self.layer(x.flatten(1))).chunk(2, 1)
        return self.b(mean + torch.randn_like(mean) * torch.exp(0.5 * log_var)).view(-1, 1, 8, 8)


class Trainer(nn.Module):
    """As a LightningModule: it holds the model, and logs."""

    def __init__(self):
        super().__init__()
        self.vae = Dense()

    def log(self, *_):
        raise RuntimeError("not attached to a trainer")

    def training_step(self, x):
        self.log("loss", 0)

    def forward(self, x):
        return self.vae(x)


def run(folder, model, source, training=TRAINING, progress=False, **declared):
    return train(folder, model, training, DataConfig(str(source)), progress=progress, **declared)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def records(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


CASES = {
    "Dense": (TRAINING, {"likelihood": "bernoulli"}),
    "Convolutions": (GREY, {"likelihood": "gaussian", "scale": 0.3, "prior": "normal"}),
    "WithStd": (GREY, {}),
    "TwoLatents": (dataclasses.replace(TRAINING, importance_samples=3), {"likelihood": "bernoulli"}),
    "Whole": (GREY, {"likelihood": "gaussian"}),
    "Trainer": (TRAINING, {"likelihood": "bernoulli"}),
}


@pytest.mark.parametrize("name", CASES)
def test_an_own_module_is_trained(name, tmp_path, digits_npy):
    training, declared = CASES[name]
    torch.manual_seed(0)
    module = globals()[name]()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    outcome = run(tmp_path / "run", module, digits_npy, training, **declared)
    lines = records(tmp_path / "run")
    assert lines[-1]["validation"]["bound"] > lines[0]["validation"]["bound"]
    loaded, info = checkpoint.load(tmp_path / "run", globals()[name]())
    assert info == outcome.info
    assert not loaded.training
    assert module.training
    assert all(weight.requires_grad for weight in module.parameters())
    for key, tensor in module.state_dict().items():
        # The module that was given holds the best weights, and all but what nothing reads was trained.
        assert torch.equal(tensor, loaded.state_dict()[key])
        assert torch.equal(tensor, before[key]) == (key == "unread"), key
    figures = evaluate(tmp_path / "run", importance_samples=2, limit=10, progress=False, model=globals()[name]())
    assert np.isfinite([figures.elbo, figures.nll]).all()
    assert figures.latent == info.model.latent


def test_what_was_recognised_is_recorded(tmp_path, digits_npy, capsys):
    run(tmp_path / "std", WithStd(), digits_npy, GREY, progress=True)
    assert "likelihood: decode returns a Normal" in capsys.readouterr().err
    model = json.loads((tmp_path / "std" / "config.json").read_text())["model"]
    assert (model["factory"], model["posterior"], model["likelihood"], model["scale"]) == (
        None,
        ["std"],
        "gaussian",
        1.0,
    )
    assert model["class"].endswith("WithStd")
    assert model["latents"] == {"z": [4]}
    assert model["declared"] == {}
    run(tmp_path / "conv", Convolutions(), digits_npy, GREY, likelihood="gaussian", scale=0.3, prior="normal")
    model = json.loads((tmp_path / "conv" / "config.json").read_text())["model"]
    assert model["latents"] == {"z": [2, 2, 2]}
    assert model["scale"] == 0.3
    assert model["recognised"][-1].endswith("reads them: unread")


def test_a_run_of_a_named_model_goes_on_to_the_same_weights(tmp_path, digits_npy, own):
    spec = f"{own}:Convolutions"
    declared = {"likelihood": "gaussian", "scale": 0.3, "prior": "normal"}
    whole = run(tmp_path / "whole", spec, digits_npy, GREY, **declared).folder
    state = torch.get_rng_state()
    folder = tmp_path / "killed"
    code = f"""
import os, sys
from pathlib import Path
from vae_export.training import loop
from vae_export.training.config import DataConfig, TrainConfig
save = loop._Training._save
def killed(self):
    save(self)
    if self.state.epoch == 2:
        os._exit(9)
loop._Training._save = killed
loop.train({str(folder)!r}, {spec!r}, TrainConfig(**{dataclasses.asdict(GREY)!r}), DataConfig({str(digits_npy)!r}),
           likelihood="gaussian", scale=0.3, prior="normal", progress=False)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=os.getcwd(), env=os.environ, check=False)
    assert done.returncode == 9
    assert (folder / "state.safetensors").exists()
    outcome = run(folder, spec, digits_npy, GREY, **declared)
    assert outcome.resumed_epoch == 2
    assert digest(folder) == digest(whole)
    assert records(folder) == records(whole)
    assert torch.equal(state, torch.get_rng_state())
    other = run(tmp_path / "other", spec, digits_npy, dataclasses.replace(GREY, seed=1), **declared).folder
    assert digest(other) != digest(whole)
    with pytest.raises(TrainingError, match=r"model\.scale is 0\.3, asked for 1\.0"):
        run(folder, spec, digits_npy, GREY, likelihood="gaussian", prior="normal")
    with pytest.raises(TrainingError, match=r"model\.factory is .*Convolutions', asked for"):
        run(folder, f"{own}:Dense", digits_npy, GREY, **declared)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The name of a module that holds the classes of this file."""
    (tmp_path / "own_models.py").write_text(
        Path(__file__).read_text().partition("def run(")[0]
        + "def failing():\n    raise ValueError('no luck')\n\n\ndef nothing():\n    return 3\n\n\n"
        + "class Fails(Dense):\n    def encode(self, x):\n        if self.training:\n"
        + "            raise KeyError('gone')\n        return super().encode(x)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    yield "own_models"
    sys.modules.pop("own_models", None)


def log_p(module, x, eps):
    """The mean of log p(x|z) with a scale of 0.3, z a sample of each posterior."""
    with torch.no_grad():
        mu, logvar = module.encode(x)
        mean = module.decode(reparameterize(mu, logvar, eps))
        return Normal(mean, 0.3).log_prob(x).flatten(1).sum(1).mean().item()


def test_the_same_line_trains_a_built_in_model_and_an_own_one_and_exports_both(tmp_path, digits_npy, own, capsys):
    shared = ["--data", str(digits_npy), "--epochs", "2", "--batch-size", "64", "--threads", "1"]
    assert main(["train", *shared, "--out", "built-in", "--likelihood", "gaussian"]) == 0
    declared = ["--likelihood", "gaussian", "--scale", "0.3", "--model", f"{own}:Dense"]
    assert main(["train", *shared, "--out", "own", *declared]) == 0
    assert main(["train", *shared, "--out", "own", *declared]) == 0
    assert "own: already finished" in capsys.readouterr().out
    assert main(["evaluate", "own", "--importance-samples", "2", "--limit", "8"]) == 0
    assert main(["export", "own", "--out", "bundle"]) == 0
    assert main(["parity", "own", "bundle"]) == 0
    vae = vae_runtime.load("bundle")
    assert vae.sample(2, seed=0).shape == (2, 1, 8, 8)
    module, info = checkpoint.load("own")
    x = checkpoint.run_data(info).test.rows(slice(4))
    with torch.no_grad():
        np.testing.assert_allclose(vae.encode(x).mean, module.encode(torch.from_numpy(x))[0], atol=1e-5)
    # The declared scale is that of the bundle, of what was trained and of what was measured.
    assert vae.manifest.likelihood.scale == 0.3
    validation = read(checkpoint.run_data(info).validation, slice(None)).x
    eps = torch.randn((1, len(validation), 4), generator=generator(0, "validation noise"))
    assert records(Path("own"))[info.result.best_epoch - 1]["validation"]["reconstruction"] == pytest.approx(
        log_p(module, validation, eps[0]), rel=1e-5
    )
    test = checkpoint.run_data(info).test.rows(slice(8))
    measured = json.loads(Path("own/evaluation.json").read_text())["reconstruction"]
    eps = torch.from_numpy(noise.normal(0, 0, 8, (4,), noise.POSTERIOR))
    assert measured == pytest.approx(log_p(module, torch.from_numpy(test), eps), rel=1e-5)
    card = Path("bundle/README.md").read_text()
    assert "those of the class Dense" in card
    assert "## What was understood of the model" in card


def test_a_nameless_run_is_exported_with_its_module(tmp_path, digits_npy):
    folder = run(tmp_path / "run", WithStd(), digits_npy, GREY).folder
    for call in (lambda: export(folder, tmp_path / "out"), lambda: evaluate(folder, progress=False)):
        with pytest.raises(InputError, match=r"WithStd, was given in Python without a name; .*model=MyVAE\(\)"):
            call()
    exported = export(folder, tmp_path / "out", model=WithStd())
    scale = vae_runtime.load(exported.path).manifest.likelihood.scale
    assert scale == pytest.approx(checkpoint.load(folder, WithStd())[0].log_scale.exp().item())
    assert scale != 1
    assert all(report.passed for report in check_parity(folder, exported.path, model=WithStd()))
    with pytest.raises(InputError, match=r"tensor log_scale: expected no tensor of this name, .*another model"):
        export(folder, tmp_path / "out2", model=Dense())
    with pytest.raises(InputError, match=r"tensor mu\.weight: expected float32 \[5, 32\], got float32 \[4, 32\]"):
        export(folder, tmp_path / "out2", model=Dense(5))
    with pytest.raises(InputError, match="a model beside a model"):
        export(Dense(), tmp_path / "out2", model=Dense())


def test_a_run_of_a_built_in_model_takes_no_module(tmp_path, digits_run):
    with pytest.raises(InputError, match="expected none for a run of a built-in model"):
        checkpoint.load(digits_run.folder, Dense())
    with pytest.raises(InputError, match="likelihood: expected only with a module of your own"):
        train(tmp_path, ModelConfig(), TRAINING, DataConfig("digits"), likelihood="bernoulli")


def test_another_class_with_the_same_weights_is_refused(tmp_path, digits_npy):
    class Softplus(Dense):
        def encode(self, x):
            mu, raw = super().encode(x)
            return Normal(mu, nn.functional.softplus(raw))

    folder = run(tmp_path / "run", Dense(), digits_npy, likelihood="bernoulli").folder
    with pytest.raises(ExportError, match=r"model\.posterior: expected \('logvar',\), as in training, got \('std',\)"):
        export(folder, tmp_path / "out", model=Softplus())


def test_a_module_is_understood_without_a_trace():
    torch.manual_seed(0)
    module, x = Convolutions(), torch.rand(8, 1, 8, 8)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    understood(module, x, Declaration(likelihood="gaussian", prior="normal"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.training


class Complement(Dense):
    """Gives probabilities, but no logits."""

    def decode(self, z):
        return 1 - super().decode(z)


def test_probabilities_keep_their_logits_up_to_the_precision_of_float32():
    torch.manual_seed(0)
    module, x = Complement(), torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        module.head[2].bias.fill_(11)
        vae = understood(module, x, Declaration(likelihood="bernoulli"))
        logits, _ = vae.answer(torch.zeros(2, 4))
        np.testing.assert_allclose(logits, -module.head[:-1](torch.zeros(2, 4)).view(2, 1, 8, 8), atol=0.05)
        assert logits.max() < -10


class Plain(Dense):
    def encode(self, x):
        return self.mu(self.body(x))

    def forward(self, x):
        return self.decode(self.encode(x))


class Draws(Dense):
    def decode(self, z):
        return super().decode(z + 0.1 * torch.randn_like(z))


class Flat(Dense):
    """Nothing shows the order of the numbers in its answer."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 32, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def decode(self, z):
        return self.head(z)


class Hidden(Dense):
    def encode(self, x):
        with torch.no_grad():
            return super().encode(x)


class HiddenLatents(Dense):
    def decode(self, z):
        with torch.no_grad():
            return super().decode(z)


class Dividing(Dense):
    def encode(self, x):
        mu, log_var = super().encode(x)
        return mu, log_var / torch.zeros(()) * 0


class Rounded(Dense):
    """Computes with fewer digits, which an export does not."""

    def __init__(self, where):
        super().__init__()
        self.where = where

    def encode(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.where == "encode"):
            h = self.body(10 * x)
            return self.mu(h).float(), self.log_var(h).float()

    def decode(self, z):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.where == "decode"):
            logits = self.head[:-1](100 * z).float()
        return logits.sigmoid().view(-1, 1, 8, 8)


class Codes(Plain):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 4)

    def encode(self, x):
        return torch.cdist(super().encode(x), self.table.weight).argmin(1, keepdim=True)

    def decode(self, codes):
        return super().decode(self.table(codes[:, 0]))


@pytest.mark.parametrize(
    ("module", "declared", "message"),
    [
        (Plain, {"likelihood": "bernoulli"}, "posterior: expected a normal one, z has none"),
        (Codes, {"likelihood": "bernoulli"}, "are codes"),
        (Draws, {"likelihood": "bernoulli"}, "decode: draws noise1, noise that the decoder adds"),
        (Hidden, {"likelihood": "bernoulli"}, "encode: its answer has no gradient; take .* is frozen by"),
        (HiddenLatents, {"likelihood": "bernoulli"}, "decode: its answer has no gradient"),
        (lambda: Dense().requires_grad_(False), {"likelihood": "bernoulli"}, "model: expected a weight to train, got"),
        (Dividing, {"likelihood": "bernoulli"}, r"^encode: expected finite numbers, got nan for row 0 of the example"),
        (Labeled, {"likelihood": "bernoulli"}, r"^decode: also takes label; name it in data\.conditions, or pass"),
        (Flat, {"likelihood": "bernoulli"}, r"expected observations of shape \[1, 8, 8\], got \[64\]; pass decode=,"),
        (Dense, {}, r"likelihood: none is declared.*--likelihood"),
        (Dense, {"likelihood": "cauchy"}, "likelihood: expected bernoulli"),
        (Dense, {"likelihood": "bernoulli", "scale": 0.5}, "scale: expected only with"),
        (Dense, {"likelihood": "bernoulli", "encode": "embed"}, "expected a method embed from encode"),
        (Dense, {"likelihood": "bernoulli", "encode": len}, "encode: expected the name of a method"),
        (lambda: Whole(nn.Dropout()), {"likelihood": "gaussian"}, "forward: calls dropout in training mode"),
        (lambda: Whole(nn.BatchNorm1d(64)), {"likelihood": "gaussian"}, "forward: changes buffers"),
        (lambda: Rounded("encode"), {"likelihood": "bernoulli"}, "encode: gives other values when nothing steers"),
        (lambda: Rounded("decode"), {"likelihood": "bernoulli"}, "decode: gives other values when nothing steers"),
        (lambda: Dense().half(), {"likelihood": "bernoulli"}, "body.1.weight: expected float32, got float16"),
    ],
)  # fmt: skip
def test_what_is_no_such_vae_is_refused_with_the_reason(module, declared, message, tmp_path, digits_npy):
    with pytest.raises(VaeError, match=message):
        run(tmp_path / "run", module(), digits_npy, **declared)
    assert not (tmp_path / "run").exists()


def test_the_command_names_its_own_option_for_a_condition_that_is_missing(own, tmp_path, digits_npy, capsys):
    assert main(["train", "--out", "run", "--data", str(digits_npy), "--model", f"{own}:Labeled"]) == 1
    assert "also takes label; name it in --conditions, or pass --decode, a method without it" in capsys.readouterr().err


def test_a_run_of_the_other_kind_of_model_is_refused_in_one_line(tmp_path, own, digits_npy, capsys):
    command = ["train", "--out", "own-run", "--data", str(digits_npy), "--epochs", "1", "--threads", "1"]
    named = [*command, "--likelihood", "bernoulli", "--model", f"{own}:Dense"]
    assert main(named) == 0
    before = digest(tmp_path / "own-run")
    capsys.readouterr()
    assert main(command) == 1
    message = capsys.readouterr().err
    assert (
        "own-run: holds a run of a model of your own, own_models:Dense; give it again (--model own_models:Dense)"
        in message
    )
    assert "architecture" not in message
    assert main(named) == 0
    assert digest(tmp_path / "own-run") == before

    command[2] = named[2] = "run"
    assert main([*command, "--hidden", "8", "--latent", "2"]) == 0
    assert main(named) == 1
    assert "run: holds a run of the built-in architecture mlp; leave your model out" in capsys.readouterr().err

    run(tmp_path / "module", Dense(), digits_npy, likelihood="bernoulli", training=GREY)
    with pytest.raises(TrainingError, match=r"holds a run of a model of your own that was given as a module; give it"):
        train(tmp_path / "module", ModelConfig(), GREY, DataConfig(str(digits_npy)))


def test_another_prior_is_refused():
    class Wide(Dense):
        def __vae_export__(self):
            return {"prior": "none", "prior_reason": "a flow supplies the latents"}

    x = torch.rand(8, 1, 8, 8)
    with pytest.raises(ExportError, match="prior: expected a standard normal one, z has none: a flow supplies"):
        understood(Wide(), x, Declaration(likelihood="bernoulli"))
    understood(Dense(), x, Declaration(likelihood="bernoulli"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere.at.all:Dense", "cannot be imported"),
        ("own_models", "expected package.module:name"),
        ("own_models:Missing", "has no Missing"),
        ("own_models:failing", "no luck"),
        ("own_models:nothing", "expected a torch.nn.Module"),
        ("own_models:Whole5", "has no Whole5"),
        ("own_models:Fails", "encode: fails in training mode: KeyError"),
    ],
)
def test_bad_models_end_without_a_traceback(spec, message, own, digits_npy, capsys):
    arguments = ["train", "--data", str(digits_npy), "--out", "run", "--likelihood", "bernoulli", "--model", spec]
    assert main(arguments) in (1, 2)
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_data_of_another_shape_and_other_options_are_refused(tmp_path, own, capsys):
    np.save(tmp_path / "wide.npy", np.random.default_rng(0).random((40, 1, 8, 9), np.float32))
    arguments = ["train", "--data", "wide.npy", "--out", "run", "--likelihood", "bernoulli", "--model", f"{own}:Dense"]
    assert main(arguments) == 1
    assert "encode: fails on the example, [8, 1, 8, 9]" in capsys.readouterr().err
    for extra, message in (
        (["--model", f"{own}:Dense", "--hidden", "3"], "--hidden: not allowed with --model"),
        (["--encode", "embed"], "--encode: allowed only with --model"),
    ):
        with pytest.raises(SystemExit):
            main(["train", "--out", "run", *extra])
        assert message in capsys.readouterr().err
