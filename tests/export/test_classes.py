"""Classes and levels: which axis of a decoder's answer holds the classes, and what is refused of an example."""

import numpy as np
import pytest
import torch
from makers import FLOAT, INT, dense, floats, saved
from torch import nn
from torch.distributions import Categorical, Independent, OneHotCategorical

import vae_runtime
from vae_export import ExportError, adopt, export
from vae_export.sources import Examples, model_source
from vae_export.understand.adapt import adapt, adapt_decoder
from vae_export.understand.adapted import run_module
from vae_export.understand.declaration import Declaration
from vae_export.understand.probe import probe
from vae_export.understand.state import unchanged

TOKENS, WORDS = 6, 11
X = torch.randint(0, WORDS, (8, TOKENS), generator=torch.Generator().manual_seed(0))


class Text(nn.Module):
    """Tokens [n, 6] of 11 words; `of` makes the answer of logits [n, 6, 11]."""

    def __init__(self, of=lambda logits: logits, shape=(TOKENS,)):
        super().__init__()
        torch.manual_seed(0)
        size = int(np.prod(shape))
        self.table, self.down, self.up = nn.Embedding(WORDS, 8), nn.Linear(8, 8), nn.Linear(4, size * WORDS)
        self.of, self.shape = of, shape

    def encode(self, x):
        return self.down(self.table(x).flatten(1, -2).mean(1)).chunk(2, 1)

    def logits(self, z):
        return self.up(z).view(-1, *self.shape, WORDS)

    def decode(self, z):
        return self.of(self.logits(z))

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), mu, logvar


def understood(model, x=X, **declaration):
    declaration = {"likelihood": "categorical", **declaration}
    with unchanged(model.eval()):
        adapted = adapt(model, x, Declaration(**declaration))
        return probe(adapted)


ANSWERS = {
    "logits": (lambda h: h, "categorical"),
    "the classes first": (lambda h: h.transpose(1, 2), "categorical"),
    "log-probabilities": (lambda h: h.log_softmax(-1), "categorical"),
    "a Categorical": (lambda h: Categorical(logits=h), None),
    "a Categorical of probabilities": (lambda h: Categorical(probs=h.softmax(-1)), None),
    "an independent one": (lambda h: Independent(Categorical(logits=h), 1), "categorical"),
    "a OneHotCategorical": (lambda h: OneHotCategorical(logits=h), None),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_logits_become_the_last_axis(name):
    of, declared = ANSWERS[name]
    model = Text(of)
    adapted = understood(model, likelihood=declared)
    likelihood, observation = adapted.signature.likelihood, adapted.signature.observation
    assert (likelihood.kind, likelihood.mean, likelihood.logits) == ("categorical", "x", "logits")
    assert (likelihood.shape, likelihood.axes) == ((TOKENS, WORDS), ("feature", "class"))
    assert (observation.range, observation.dtype) == ((0, WORDS - 1), "int64")
    z = adapted.examples["z"]
    mean, logits = run_module(adapted.modules["decoder"], [z])
    torch.testing.assert_close(mean, model.logits(z).softmax(-1))
    torch.testing.assert_close(logits.log_softmax(-1), model.logits(z).log_softmax(-1))


def test_probabilities_have_no_logits():
    model = Text(lambda h: h.softmax(-1).transpose(1, 2))
    adapted = understood(model)
    assert adapted.signature.likelihood.logits is None
    assert any("decode returns probabilities along axis 1" in line for line in adapted.recognised)
    (mean,) = run_module(adapted.modules["decoder"], [adapted.examples["z"]])
    torch.testing.assert_close(mean, model.logits(adapted.examples["z"]).softmax(-1))


PICTURES = {
    "behind the picture": ((4, 3), lambda h: h),
    "as channels of a picture without any": ((4, 3), lambda h: h.movedim(-1, 1)),
    "in place of the one channel": ((1, 4, 3), lambda h: h.movedim(-1, 2).flatten(1, 2)),
    "behind the channels": ((2, 4, 3), lambda h: h.movedim(-1, 2)),
}


@pytest.mark.parametrize("where", PICTURES)
def test_classes_of_pictures(where):
    shape, of = PICTURES[where]
    x = torch.randint(0, WORDS, (6, *shape), generator=torch.Generator().manual_seed(0))
    model = Text(of, shape)
    adapted = understood(model, x)
    assert adapted.signature.likelihood.shape == (*shape, WORDS)
    assert adapted.signature.likelihood.axes == (*adapted.signature.observation.axes, "class")
    mean, logits = run_module(adapted.modules["decoder"], [adapted.examples["z"]])
    torch.testing.assert_close(logits, model.logits(adapted.examples["z"]))
    torch.testing.assert_close(mean, logits.softmax(-1))


def test_an_axis_that_may_be_either_is_refused():
    x = torch.randint(0, WORDS, (8, WORDS), generator=torch.Generator().manual_seed(0))
    with pytest.raises(ExportError, match=r"any of the axes \[1, 2\] .* may be that of the classes; pass decode="):
        understood(Text(shape=(WORDS,)), x)
    assert understood(Text(lambda h: Categorical(logits=h), (WORDS,)), x).signature.likelihood.shape == (WORDS, WORDS)


@pytest.mark.parametrize(
    ("of", "x", "declared", "words"),
    [
        (
            lambda h: h,
            X + 5,
            {},
            r"example: expected classes 0 … 10 .*got 1[1-5] at .*; give the numbers of the",
        ),
        (lambda h: h, X, {"range": (0, 9)}, r"range: expected \(0.0, 10.0\), the classes .*got \(0.0, 9.0\); leave it"),
        (lambda h: h.flatten(1), X, {}, r"decode: expected an axis of 2 or more classes .*\[6\], got \[66\]; give the"),
        (lambda h: h[..., :1], X, {}, r"decode: expected an axis of 2 or more classes .*\[6\], got \[6, 1\]"),
        (lambda h: Categorical(logits=h), X, {"likelihood": "poisson"}, "expected categorical, since decode returns a"),
        (lambda h: Categorical(logits=h[:, :3]), X, {"likelihood": None}, r"classes .*, \[6\], got \[3, 11\]"),
    ],
)
def test_what_does_not_fit_is_refused(of, x, declared, words):
    model = Text(of)
    # The example's own range is not that of the table.
    model.table = nn.Embedding(WORDS + 5, 8)
    with pytest.raises(ExportError, match=words):
        understood(model, x, **declared)


def test_one_hot_observations_are_refused_for_numbers():
    model = Text(lambda h: OneHotCategorical(logits=h))
    model.encode = lambda x: model.down(x.mean(1) @ model.table.weight).chunk(2, 1)
    x = nn.functional.one_hot(X, WORDS).float()
    with pytest.raises(
        ExportError, match=r"decode: expected an axis .* give the numbers of the classes as observations"
    ):
        understood(model, x, likelihood=None)


def test_classes_of_a_decoder_alone():
    decode = Text(lambda h: h).eval()
    with unchanged(decode):
        adapted = adapt_decoder(decode, {"z": torch.randn(4, 4)}, Declaration(likelihood="categorical"))
    assert adapted.signature.likelihood.shape == (TOKENS, WORDS)
    assert (adapted.signature.observation.shape, adapted.signature.observation.dtype) == ((TOKENS,), "int64")


class AnyLength(nn.Module):
    """Tokens of any length: convolutions along the time."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.down, self.up = (
            nn.Embedding(WORDS, 4),
            nn.Conv1d(4, 4, 2, 2),
            nn.ConvTranspose1d(2, WORDS, 2, 2),
        )

    def encode(self, x):
        return self.down(self.table(x).transpose(1, 2)).chunk(2, 1)

    def decode(self, z):
        return self.up(z)


def test_a_bundle_of_tokens_of_any_length_is_scored_and_drawn(tmp_path):
    x = torch.randint(0, WORDS, (8, 12), generator=torch.Generator().manual_seed(0))
    model = AnyLength().eval()
    export(model, tmp_path / "b", example=x, likelihood="categorical", posterior="logvar", prior="normal",
           axes=("time",), dynamic=("time",), formats=("onnx",))  # fmt: skip
    assert vae_runtime.verify(tmp_path / "b").passed
    vae = vae_runtime.load(tmp_path / "b")
    assert vae.manifest.likelihood.axes == ("time", "class")
    for length in (12, 20):
        x = torch.randint(0, WORDS, (5, length), generator=torch.Generator().manual_seed(1))
        scores = vae.score(x.numpy(), seed=2)
        z = vae.encode(x.numpy()).sample(seed=2)
        with torch.no_grad():
            logits = model.decode(torch.from_numpy(z)).transpose(1, 2)
        expected = Categorical(logits=logits).log_prob(x).sum(1)
        np.testing.assert_allclose(scores.reconstruction, expected, rtol=1e-5)
        drawn = vae.sample(3, seed=0, observe=True, latent_shape=z.shape[1:])
        assert drawn.shape == (3, length)
        assert np.isfinite(vae.score(drawn.astype(np.int64), seed=0).elbo).all()
    assert "of 11 classes" in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")


class Picture(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down, self.up = nn.Linear(12, 6), nn.Linear(3, 12)

    def encode(self, x):
        return self.down(x.float()).chunk(2, 1)

    def decode(self, z):
        return self.up(z)


def test_levels_are_those_of_the_range():
    numbers = torch.randint(0, 256, (8, 12), generator=torch.Generator().manual_seed(0))
    for x, declared, bounds in (
        (numbers / 255, {}, (0, 1)),
        (numbers / 127.5 - 1, {"range": (-1.0, 1.0)}, (-1, 1)),
        (numbers.to(torch.uint8), {}, (0, 255)),
    ):
        scale = 0.05 * (bounds[1] - bounds[0])
        adapted = understood(Picture(), x, likelihood="logistic", scale=scale, posterior="logvar", **declared)
        assert adapted.signature.observation.range == bounds
        # The mean may be anything.
        assert adapted.signature.likelihood.shape is None
    for x, declared in ((numbers / 127.5 - 1, {}), (numbers / 100, {}), (numbers / 255, {"range": (0.0, 2.0)})):
        with pytest.raises(ExportError, match=r"example: expected the 256 levels .*, pass range=, the first and"):
            understood(Picture(), x, likelihood="logistic", posterior="logvar", **declared)


def test_graphs_of_classes_and_levels_are_adopted(tmp_path):
    table = {"t": floats(7, 6), "w": floats(6, 4), "last": np.array([1])}
    nodes = [
        ("Gather", ["t", "x"], ["e"]),
        ("ReduceMean", ["e", "last"], ["m"], {"keepdims": 0}),
        ("MatMul", ["m", "w"], ["out"]),
    ]
    encoder = saved(tmp_path / "e.onnx", nodes, [("x", INT, ["b", 5])], [("out", FLOAT, ["b", 4])], table, opset=18)
    weights = {"v": floats(2, 35), "shape": np.array([0, 5, 7])}
    nodes = [("MatMul", ["z", "v"], ["h"]), ("Reshape", ["h", "shape"], ["logits"])]
    decoder = saved(tmp_path / "d.onnx", nodes, [("z", FLOAT, ["b", 2])], [("logits", FLOAT, ["b", 5, 7])], weights)
    adopt((encoder, decoder), tmp_path / "out", posterior="logvar", likelihood="categorical", prior="normal")
    assert vae_runtime.verify(tmp_path / "out").passed
    vae = vae_runtime.load(tmp_path / "out")
    assert (vae.manifest.likelihood.logits, vae.manifest.observation.range) == ("logits", (0, 6))
    np.testing.assert_allclose(vae.sample(3, seed=0).sum(-1), 1, rtol=1e-5)
    assert np.isfinite(vae.score(vae.sample(3, seed=0, observe=True).astype(np.int64), seed=0).elbo).all()
    flat = saved(tmp_path / "f.onnx", nodes[:1], [("z", FLOAT, ["b", 2])], [("h", FLOAT, ["b", 35])], weights)
    with pytest.raises(ExportError, match=r"h: expected \[5\] and behind it 2 or more classes, got \[35\]"):
        adopt((encoder, flat), tmp_path / "no", posterior="logvar", likelihood="categorical", range=(0, 6))
    pair = (
        dense(tmp_path / "e2.onnx", {"o": 4}, {"o": "Tanh"}),
        dense(tmp_path / "d2.onnx", {"y": 6}, {"y": "Tanh"}, ("z", 2)),
    )
    adopt(pair, tmp_path / "levels", posterior="logvar", likelihood="logistic", scale=0.1, prior="normal")
    levels = vae_runtime.load(tmp_path / "levels")
    assert np.isfinite(levels.score(levels.sample(3, seed=0, observe=True), seed=0).elbo).all()


def test_an_example_of_a_source_may_be_of_any_integers():
    source = model_source(Text().eval(), Declaration(likelihood="categorical"), Examples(X.to(torch.int32)), None)
    with unchanged(source.model):
        adapted = adapt(source.model, source.example, source.declaration)
    assert adapted.signature.observation.dtype == "int64"
