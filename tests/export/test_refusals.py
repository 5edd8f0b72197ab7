"""Models that cannot be proven equal: each is refused with its reason and what to do, and nothing is written."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import vae_export
import vae_runtime
from vae_export import DataConfig, ExportError, ModelConfig, TrainConfig, check_parity, evaluate, export, train
from vae_runtime.errors import InputError, VaeError

X = torch.rand(6, 12, generator=torch.Generator().manual_seed(3))


class Plain(nn.Module):
    """A VAE that exports; each of the others does one thing wrong."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(12, 8)
        self.mu, self.logvar = nn.Linear(8, 3), nn.Linear(8, 3)
        self.head = nn.Linear(3, 12)

    def encode(self, x):
        h = torch.relu(self.body(x))
        return self.mu(h), self.logvar(h)

    def decode(self, z):
        return self.head(z)

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar))


class Branch(Plain):
    def decode(self, z):
        return self.head(z) if z.sum() > 0 else self.head(-z)


class RareBranch(Plain):
    """Its other side is not reached by ordinary inputs: comparing numbers would not find it."""

    def encode(self, x):
        if x.abs().max() > 1000:
            x = x / 1000
        return super().encode(x)


class ItemLoop(Plain):
    def decode(self, z):
        x = self.head(z)
        for _ in range(int(z[0, 0].abs()) + 1):
            x = x * 0.5
        return x


class BakedBatch(Plain):
    def decode(self, z):
        return self.head(z.reshape(6, 3))


class BakedView(Plain):
    """Works at every even batch, on half as many rows."""

    def decode(self, z):
        return self.head(z).reshape(2, -1, 12).reshape(-1, 12) + torch.arange(len(z) // 2).repeat(2)[:, None] * 0


class AlwaysDropout(Plain):
    def decode(self, z):
        return functional.dropout(self.head(z), 0.5)


class HiddenRandom(Plain):
    def decode(self, z):
        return self.head(z) + torch.from_numpy(np.random.default_rng().normal(size=(1, 12)).astype(np.float32))


class NoisyEncoder(Plain):
    """A denoising VAE whose noise stays on in evaluation mode."""

    def encode(self, x):
        return super().encode(x + 0.1 * torch.randn_like(x))


class Rows(Plain):
    def encode(self, x):
        return super().encode(x - x.mean(0))


class BatchStatistics(Plain):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(12, track_running_stats=False)

    def encode(self, x):
        return super().encode(self.norm(x))


class FrozenMode(Plain):
    """Its batch normalisation never leaves training mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(12)

    def train(self, mode=True):
        super().train(mode)
        self.norm.training = True
        return self

    def encode(self, x):
        return super().encode(self.norm(x))


class NotANumber(Plain):
    def decode(self, z):
        return torch.log(self.head(z) - 100)


class Infinite(Plain):
    def decode(self, z):
        return self.head(z) / 0.0


class NegativeStd(Plain):
    def encode(self, x):
        mu, logvar = super().encode(x)
        return torch.distributions.Normal(mu, logvar - 5)


class IgnoresLatent(Plain):
    def decode(self, z):
        return self.head(torch.zeros_like(z))


class Conditional(Plain):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 3)

    def decode(self, z, label):
        return self.head(z + self.embed(label))

    def forward(self, x, label):
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar), label)


class IgnoresLabel(Conditional):
    def decode(self, z, label):
        return self.head(z) + 0 * self.embed(label).sum(-1, keepdim=True)


class FixedSize(nn.Module):
    """Convolutions that end in a dense layer: no other height works."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.out = nn.Conv2d(1, 4, 4, 2, 1), nn.Linear(4 * 16, 6)
        self.back, self.up = nn.Linear(3, 64), nn.ConvTranspose2d(4, 1, 4, 2, 1)

    def encode(self, x):
        return self.out(self.conv(x).flatten(1)).chunk(2, 1)

    def decode(self, z):
        return self.up(self.back(z).view(-1, 4, 4, 4))


class Unsettled(Plain):
    """Without a forward that samples, nothing shows what the second tensor is."""

    def forward(self, x):
        return self.decode(self.encode(x)[0])


class Normally(Plain):
    def encode(self, x):
        mu, logvar = super().encode(x)
        return torch.distributions.Normal(mu, torch.exp(0.5 * logvar))


class Swapped(Plain):
    def encode(self, x):
        mu, logvar = super().encode(x)
        return logvar, mu

    def forward(self, x):
        logvar, mu = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar))


class Complex(Plain):
    def decode(self, z):
        return torch.fft.fft(self.head(z))


class ComplexLatent(Plain):
    def encode(self, x):
        return torch.fft.rfft(x)


class Indices(Plain):
    def encode(self, x):
        return (x[:, :3] * 5).long()

    def decode(self, codes):
        return self.head(codes.float())


Y = torch.arange(6) % 4
GAUSSIAN = {"posterior": "logvar"}


# Model, what is passed to export, and what the error must say: the reason, and then what to do.
class Flattening(Plain):
    """What forward passes to encode is no reshape of the pictures, and its answer adds them."""

    def forward(self, x):
        mu, logvar = self.encode(1 - x.view(-1, 12))
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)) + x.view(-1, 12)


class Pictures(Plain):
    def encode(self, x):
        n, _, height, width = x.shape
        return super().encode(x.reshape(n, height * width))


REFUSED = {
    "pictures that forward flattens and changes": (
        Flattening,
        {**GAUSSIAN, "example": X.reshape(6, 1, 3, 4)},
        "forward passes [6, 12] to encode",
        "give the example in that shape",
    ),
    "complex observations": (Complex, GAUSSIAN, "decode: expected real numbers, got complex ones", "their real part"),
    "complex latents": (ComplexLatent, {}, "encode: expected real numbers, got complex ones", "view_as_real"),
    "no batch axis": (
        Pictures,
        {**GAUSSIAN, "example": X[0].reshape(1, 3, 4)},
        "the same with one more axis",
        "example[None]",
    ),
    "branch": (Branch, GAUSSIAN, "branch or loop depends on the values of a tensor", "torch.where"),
    "rare branch": (RareBranch, GAUSSIAN, "branch or loop depends on the values of a tensor", "torch.where"),
    "loop over a value": (ItemLoop, GAUSSIAN, "depends on the values of a tensor", "torch.where"),
    "baked batch": (BakedBatch, GAUSSIAN, "batch size is baked in", "write -1"),
    "even batches only": (BakedView, GAUSSIAN, "batch", "write -1"),
    "always-on dropout": (AlwaysDropout, GAUSSIAN, "dropout in training mode", "self.training"),
    "hidden randomness": (HiddenRandom, GAUSSIAN, "two runs on the same input differ", "remove what is random"),
    "posterior that forward contradicts": (
        Plain,
        {"posterior": "log_std"},
        "gives decode(mu + std) for logvar",
        "posterior='logvar'",
    ),
    "mean second": (Swapped, {}, "and the mean second", "encode="),
    "mean second, whatever is said": (Swapped, GAUSSIAN, "and the mean second", "encode="),
    "posterior against a Normal": (Normally, {"posterior": "logvar"}, "encode returns a Normal", "leave posterior="),
    "codebook without codes": (Plain, {**GAUSSIAN, "codebook": 8}, "with codes only, got 8", "leave it out"),
    "conditions without names": (Plain, {**GAUSSIAN, "conditions": Y}, "expected arrays by name", "label"),
    "range the other way": (Plain, {**GAUSSIAN, "range": (1.0, 0.0)}, "two finite numbers, min and max", "range"),
    "second tensor of one": (Indices, GAUSSIAN, "pass codebook=", "codebook"),
    "too few codes": (Indices, {"codebook": 2}, "more than", "got 2"),
    "scale without a likelihood": (
        Plain,
        {**GAUSSIAN, "scale": 0.5},
        "expected only with one of the likelihoods gaussian, laplace, logistic",
        "pass likelihood=",
    ),
    "bernoulli beyond 1": (
        Plain,
        {**GAUSSIAN, "likelihood": "bernoulli", "example": X * 255},
        "expected values in [0, 1] for a bernoulli likelihood",
        "scale it",
    ),
    "noisy encoder": (NoisyEncoder, GAUSSIAN, "samples inside", "encode="),
    "rows influence each other": (
        Rows,
        GAUSSIAN,
        "rows of a batch influence each other",
        "make each row's result its own",
    ),
    "batch statistics": (BatchStatistics, GAUSSIAN, "without running statistics", "track_running_stats=True"),
    "batch norm in training mode": (FrozenMode, GAUSSIAN, "norm: batch normalization stays in training mode", "eval()"),
    "not a number": (NotANumber, GAUSSIAN, "expected finite numbers, got nan", "check the weights"),
    "infinity": (Infinite, GAUSSIAN, "expected finite numbers, got", "check the weights"),
    "wrong second tensor": (Plain, {"posterior": "var"}, "gives decode(mu + std) for logvar", "posterior='logvar'"),
    "negative std": (NegativeStd, {}, "expected a standard deviation of at least 0", "posterior="),
    "latent without effect": (IgnoresLatent, GAUSSIAN, "no output depends on z", "decode="),
    "unused condition": (
        IgnoresLabel,
        {**GAUSSIAN, "conditions": {"label": Y}},
        "'label': encode and decode do not depend on it",
        "leave it out",
    ),
    "renamed condition": (
        Conditional,
        {**GAUSSIAN, "conditions": {"digit": Y}},
        "also takes label; the conditions have digit",
        "the name of its parameter",
    ),
    "missing condition": (Conditional, GAUSSIAN, "also takes label", "pass conditions="),
    "out of the declared range": (
        Plain,
        {**GAUSSIAN, "range": (0.0, 1.0)},
        "expected values from 0 to 1",
        "logits",
    ),
    "example out of range": (
        Plain,
        {**GAUSSIAN, "range": (0.0, 0.5)},
        "expected values from 0 to 0.5",
        "another range=",
    ),
    "unknown posterior": (Unsettled, {}, "forward draws no normal noise", "pass posterior="),
    "unknown likelihood": (Plain, {**GAUSSIAN, "likelihood": "cauchy"}, "bernoulli, gaussian, laplace", "cauchy"),
    "no encode": (nn.Linear(12, 12), {}, "expected a method encode or a submodule encoder", "pass encode="),
    "no such method": (Plain, {"encode": "encod"}, "expected a method encod from", "got none"),
    "fixed height": (
        FixedSize,
        {**GAUSSIAN, "dynamic": ("height",), "example": torch.rand(4, 1, 8, 8)},
        "height: expected the model to work at other sizes than 8",
        "leave height out of dynamic=",
    ),
    "unknown axis": (Plain, {**GAUSSIAN, "dynamic": ("time",)}, "expected one of the axes", "axes="),
    "prior of too few": (Plain, {**GAUSSIAN, "prior": "mixture:3"}, "at least 12 observations, got 6", "observations="),
    "too few class names": (
        Conditional,
        {**GAUSSIAN, "conditions": {"label": Y}, "class_names": ["a", "b"]},
        "a name for each of the classes 0 … 3",
        "got 2",
    ),
    "example with NaN": (Plain, {**GAUSSIAN, "example": X * float("nan")}, "expected finite numbers", "clean it"),
    "unknown format": (Plain, {**GAUSSIAN, "formats": ("onnx", "coreml")}, "onnx, torchscript, pt2", "coreml"),
}


class LeftOut(Plain):
    """Its posterior's spread is in forward alone, and lost if the encoder's answer is all there is."""

    def encode(self, x):
        return self.mu(torch.relu(self.body(x)))


@pytest.mark.long
def test_parameters_that_no_graph_has_are_named(tmp_path):
    done = vae_export.export(LeftOut(), tmp_path / "bundle", example=X, posterior="none", formats=("onnx",))
    assert any(line.endswith("reads them: logvar.weight, logvar.bias") for line in done.recognised)
    done = vae_export.export(Plain(), tmp_path / "whole", example=X, **GAUSSIAN, formats=("onnx",))
    assert not any("left out" in line for line in done.recognised)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, tmp_path):
    make, arguments, reason, remedy = REFUSED[name]
    model = make() if isinstance(make, type) else make
    with pytest.raises(VaeError) as refusal:
        vae_export.export(model, tmp_path / "bundle", **{"example": X, **arguments})
    message = str(refusal.value)
    assert reason in message
    assert remedy in message
    assert isinstance(refusal.value, (ExportError, InputError))
    assert list(tmp_path.iterdir()) == []


def _noise(mu: torch.Tensor) -> torch.Tensor:
    return torch.randn_like(mu)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_parts_are_named_and_traced_ones_are_taken(tmp_path):
    scripted, traced, drawing = Plain(), Plain(), Plain()
    scripted.head = torch.jit.script(scripted.head)
    with pytest.raises(ExportError, match=r"decoder: head: expected a torch\.nn\.Module, got a ScriptModule; put the"):
        export(scripted, tmp_path / "a", example=X, **GAUSSIAN, formats=("onnx",))
    traced.head = torch.jit.trace(traced.head, torch.rand(2, 3))
    export(traced, tmp_path / "b", example=X, **GAUSSIAN, formats=("onnx",))
    noise = torch.jit.script(_noise)
    drawing.forward = lambda x: drawing.decode(drawing.encode(x)[0] + noise(drawing.encode(x)[1]))
    with pytest.raises(ExportError, match=r"or a scripted function; draw with torch\.randn_like"):
        export(drawing, tmp_path / "c", example=X)


class SmallConstants(Plain):
    """What keeps a logarithm finite must not be optimized away."""

    def decode(self, z):
        return torch.log(torch.relu(self.head(z)) + 1e-10)


def test_small_constants_are_kept(tmp_path):
    exported = vae_export.export(SmallConstants(), tmp_path / "bundle", example=X, posterior="logvar")
    x = vae_runtime.load(exported.path).sample(64, seed=0)
    assert np.isclose(x, np.log(1e-10), rtol=1e-6).any()


class Overwrites(Plain):
    def encode(self, x):
        return super().encode(x.clamp_(0.4, 0.6))


def test_the_users_own_arrays_stay_as_they_are(tmp_path):
    x = X.numpy().copy()
    vae_export.export(Overwrites(), tmp_path / "bundle", example=x, posterior="logvar", formats=("onnx",))
    np.testing.assert_array_equal(x, X.numpy())


class TopDown(nn.Module):
    """The lower latent is drawn last and given first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.top, self.low, self.head = nn.Linear(12, 6), nn.Linear(15, 6), nn.Linear(6, 12)

    def encode(self, x):
        m2, l2 = self.top(x).chunk(2, 1)
        z2 = m2 + torch.randn_like(m2) * torch.exp(0.5 * l2)
        m1, l1 = self.low(torch.cat([x, z2], 1)).chunk(2, 1)
        return [(m1, l1), (m2, l2)]

    def decode(self, z1, z2):
        return self.head(torch.cat([z1, z2], 1))


def test_a_draw_is_the_noise_of_the_latent_that_others_depend_on(tmp_path):
    model = TopDown()
    exported = vae_export.export(model, tmp_path / "bundle", example=X, posterior="logvar", formats=("onnx",))
    vae = vae_runtime.load(exported.path)
    assert [latent.posterior.noise for latent in vae.latents] == [None, "eps_z2"]
    q = vae.encode(X.numpy(), seed=3)
    z2 = torch.from_numpy(q.sample(seed=3)["z2"])
    with torch.no_grad():
        expected = model.low(torch.cat([X, z2], 1)).chunk(2, 1)[0].numpy()
    np.testing.assert_allclose(q["z1"].mean, expected, atol=1e-5)


def test_the_plain_model_exports(tmp_path):
    """What every refused model differs from in one point."""
    exported = vae_export.export(Plain(), tmp_path / "bundle", example=X)
    assert exported.parity.passed
    conditional = {"example": X, "conditions": {"label": Y}, "class_names": list("abcd")}
    assert vae_export.export(Conditional(), tmp_path / "conditional", **conditional).parity.passed


# Arguments that are wrong whatever the model is: refused before it is called.


@pytest.mark.parametrize(
    ("argument", "value", "match"),
    [
        ("scale", "a", r"^scale: expected a positive number, got 'a'"),
        ("latent_scale", "a", r"^latent_scale: expected finite numbers other than 0, got 'a'"),
        ("range", ("a", "b"), r"^range: expected two finite numbers, min and max, got \('a', 'b'\)"),
        ("codebook", "a", r"^codebook: expected an integer, got 'a'"),
        ("axes", 5, r"^axes: expected a sequence of names, got 5"),
        ("axes", ("side", "side"), r"^axes: expected different names, got \['side', 'side'\]"),
        ("axes", ("a", "b", "c", "d"), r"^axes: expected 1 name for an observation \[10\]"),
        ("likelihood", "cauchy", r"^likelihood: expected bernoulli, .* got 'cauchy'"),
        ("likelihood", 5, r"^likelihood: expected bernoulli, .* got 5"),
        ("posterior", "precision", r"^posterior: expected one of logvar, .* got 'precision'"),
        ("prior", 5, r"^prior: expected normal, none, sphere, .* got int"),
        ("formats", ("tflite",), r"^formats: expected some of onnx, torchscript, pt2, got 'tflite'"),
        ("formats", "onnx", r"^formats: expected some of onnx, torchscript, pt2, got 'onnx'"),
        ("formats", 5, r"^formats: expected some of onnx, torchscript, pt2, got 5"),
        ("force", "yes", r"^force: expected True or False, got 'yes'"),
        ("progress", 1, r"^progress: expected True or False, got 1"),
    ],
)
def test_a_wrong_argument_is_refused_before_the_model_is_called(tmp_path, argument, value, match):
    class Untouched(nn.Module):
        def encode(self, x):
            pytest.fail("the model was called")

        decode = forward = encode

    with pytest.raises(VaeError, match=match):
        export(Untouched(), tmp_path / "bundle", example=torch.zeros(4, 10), **{argument: value})
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_model_no_folder_or_no_configuration_is_an_error(tmp_path):
    model, training, source, folder = ModelConfig(), TrainConfig(), DataConfig(), tmp_path
    for match, call in (
        ("^run_folder: expected the path of a folder, got NoneType", lambda: train(None, model, training, source)),
        (
            "^model: expected a ModelConfig, a module or its name, got TrainConfig",
            lambda: train(tmp_path, training, model, source),
        ),
        ("^source: expected a DataConfig, got str", lambda: train(tmp_path, model, training, "digits")),
        (
            "^run_folder: expected the path of a folder, got ModelConfig",
            lambda: train(model, folder, training, source),
        ),
        (
            "^progress: expected True or False, got 'no'",
            lambda: train(folder, model, training, source, progress="no"),
        ),
        ("^run_folder: expected the path of a folder, got NoneType", lambda: evaluate(None)),
        ("^limit: expected an integer, got 'a'", lambda: evaluate(tmp_path, limit="a")),
        ("^out: expected the path of a folder, got NoneType", lambda: export(nn.Linear(1, 1), None)),
        (
            r"^b\.zip: expected a folder, .*; export to b, then `vae-runtime pack b --out b\.zip`$",
            lambda: export(nn.Linear(1, 1), "b.zip"),
        ),
        (r"^model: expected a torch\.nn\.Module", lambda: export(None, tmp_path / "bundle")),
        ("^run: expected the path of a folder, got NoneType", lambda: check_parity(None, tmp_path)),
    ):
        with pytest.raises(InputError, match=match):
            call()
    assert list(tmp_path.iterdir()) == []
