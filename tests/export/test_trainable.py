"""What a model of the user's must be, so that the objectives are of it: each refusal says what to do."""

import dataclasses
import re

import pytest
import torch
from torch import nn
from torch.distributions import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    Distribution,
    Independent,
    Laplace,
    LogNormal,
    MultivariateNormal,
    NegativeBinomial,
    Normal,
    StudentT,
)

import vae_runtime
from vae_export import export
from vae_export.errors import ExportError, TrainingError
from vae_export.training.own_vae import understood
from vae_export.understand.adapt import adapt
from vae_export.understand.adapted import run_module
from vae_export.understand.declaration import Declaration
from vae_export.understand.probe import probe
from vae_export.understand.state import unchanged

X = torch.rand(8, 12, generator=torch.Generator().manual_seed(3))
GAUSSIAN = Declaration(prior="normal", likelihood="gaussian", scale=0.3)
BERNOULLI = Declaration(prior="normal", likelihood="bernoulli")


class Plain(nn.Module):
    """A VAE that is trained; `of` makes the answer of its decode."""

    def __init__(self, of=lambda model, z: model.head(z)):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.second = nn.Linear(12, 6), nn.Linear(3, 12), nn.Linear(3, 12)
        self.scale = nn.Parameter(torch.tensor(0.5))
        # In a tuple, since a module would be registered.
        self.of = (of,)

    def encode(self, x):
        return self.body(x).chunk(2, 1)

    def decode(self, z):
        return self.of[0](self, z)

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), mu, logvar


def exported(model, declaration):
    """What an export understands of a model, whose training nobody knows."""
    with unchanged(model.eval()):
        return adapt(model, X, declaration)


class Whole(Plain):
    """Without encode and decode."""

    encode = decode = None

    def forward(self, x):
        mu, logvar = self.body(x).chunk(2, 1)
        return *self.of[0](self, mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), mu, logvar


def with_scale(model, z):
    return model.head(z), model.second(z)


@pytest.mark.parametrize("declared", [GAUSSIAN, BERNOULLI])
@pytest.mark.parametrize(
    ("of", "named"),
    [
        (with_scale, "item 2 of its answer"),
        (lambda model, z: (model.second(z), model.head(z)), "item 2 of its answer"),
        (lambda model, z: (None, *with_scale(model, z)), "item 2 of its answer"),
        (lambda model, z: (z, *with_scale(model, z)), "item 2 of its answer"),
        (lambda model, z: (model.head(z), model.scale), "item 2 of its answer"),
        (lambda model, z: (model.head(z), model.second(z)[:, :1]), "item 2 of its answer"),
        (lambda model, z: (model.head(z), model.second(z).view(-1, 3, 4)), "item 2 of its answer"),
        (lambda model, z: {"x_mean": model.head(z), "x_logvar": model.second(z)}, "'x_logvar'"),
        (lambda model, z: {"both": with_scale(model, z)}, "'both'"),
        (lambda model, z: (model.head(z), Normal(model.head(z), 0.1)), "item 2 of its answer"),
    ],
)
def test_a_scale_beside_the_mean_is_not_dropped(of, named, declared):
    with pytest.raises(ExportError, match=rf"got {named}|returns {named}") as error:
        understood(Plain(of), X, declared)
    assert "torch.distributions.Normal(mean, std)" in str(error.value)
    assert "decode=" in str(error.value)


@pytest.mark.parametrize(
    "of",
    [
        lambda model, z: (model.head(z), z),
        lambda model, z: (model.head(z), torch.sigmoid(model.head(z))),
        lambda model, z: (torch.sigmoid(model.head(z)), model.head(z)),
        lambda model, z: (model.head(z), model.head(z)),
        lambda model, z: (model.head(z), torch.relu(model.second(z))[:, :5]),
        lambda model, z: {"x": model.head(z), "hidden": model.second(z)[:, :5]},
        lambda model, z: (Normal(model.head(z), 0.3), model.second(z)),
        lambda model, z: (Bernoulli(logits=model.head(z)), model.second(z)),
    ],
)
def test_what_is_no_scale_may_stand_beside_the_mean(of):
    answer = of(Plain(), torch.zeros(1, 3))
    stated = isinstance(answer, tuple) and isinstance(answer[0], Distribution)
    vae = understood(Plain(of), X, dataclasses.replace(BERNOULLI, likelihood=None) if stated else BERNOULLI)
    assert vae.latent == 3


def test_a_second_distribution_is_not_dropped():
    def two(model, z):
        return Bernoulli(logits=model.head(z)), Independent(Normal(model.second(z), 1.0), 1)

    with pytest.raises(ExportError, match="got item 2 of its answer beside it, which training would drop"):
        understood(Plain(two), X, BERNOULLI)


def test_a_scale_beside_the_mean_of_forward_is_not_dropped():
    with pytest.raises(ExportError, match=r"(got|returns) item 2 of what forward returns beside"):
        understood(Whole(with_scale), X, GAUSSIAN)
    # The second does not depend on the latent, or follows from the first.
    for of in (lambda model, z: (model.head(z), X), lambda model, z: (model.head(z), torch.tanh(model.head(z)))):
        assert understood(Whole(of), X, GAUSSIAN).latent == 3


def test_an_export_scores_by_no_scale_but_that_of_decode():
    for scale in (0.3, None):
        with pytest.raises(ExportError, match="gaussian has a scale, and decode returns item 2 of its answer beside"):
            adapt(
                Plain(with_scale).eval().requires_grad_(False),
                X,
                Declaration(prior="normal", likelihood="gaussian", scale=scale),
            )
    mapping = Plain(lambda model, z: {"x_mean": model.head(z), "x_logvar": model.second(z)})
    for model, named in ((mapping, "'x_logvar'"), (Whole(with_scale), "item 2 of what forward returns")):
        with pytest.raises(ExportError, match=f"gaussian has a scale, and decode returns {named} beside"):
            adapt(model.eval().requires_grad_(False), X, GAUSSIAN)
    # Without a scale nothing contradicts it, and it is recorded.
    adapted = exported(Plain(with_scale), Declaration())
    assert any("of which the first is taken" in line for line in adapted.recognised)


@pytest.mark.parametrize(
    ("of", "name"),
    [
        (lambda h: NegativeBinomial(3.0, logits=h), "NegativeBinomial"),
        (lambda h: ContinuousBernoulli(logits=h), "ContinuousBernoulli"),
        (lambda h: StudentT(4.0, h, 0.1), "StudentT"),
    ],
)
def test_a_distribution_that_is_no_likelihood_here_is_named_at_once(of, name):
    model = Plain(lambda model, z: of(model.head(z)))
    for likelihood in (None, "gaussian"):
        with pytest.raises(
            ExportError, match=rf"decode returns a {name}, which is none of bernoulli, gaussian, "
        ) as error:
            understood(model, X, Declaration(prior="normal", likelihood=likelihood))
        assert "none is declared" not in str(error.value)
    # A bundle says the same where scores are asked for, and names no argument that would be refused.
    adapted = exported(model, Declaration())
    assert "likelihood=" not in adapted.signature.likelihood.reason
    assert name in adapted.signature.likelihood.reason
    with pytest.raises(ExportError, match="none is declared"):
        understood(Plain(), X, Declaration(prior="normal"))


class Posterior(Plain):
    """Its encode returns a distribution, made by `of` of a mean, a scale and numbers that may correlate."""

    def __init__(self, of):
        super().__init__()
        self.posterior = (of,)
        self.between = nn.Linear(12, 9)

    def encode(self, x):
        mu, raw = self.body(x).chunk(2, 1)
        return self.posterior[0](mu, nn.functional.softplus(raw), self.between(x).view(-1, 3, 3).tril(-1))

    def forward(self, x):
        q = self.encode(x)
        return self.head(q.rsample()), q


def independent(mu, std, between):
    return MultivariateNormal(mu, scale_tril=torch.diag_embed(std))


def by_covariance(mu, std, between):
    return MultivariateNormal(mu, covariance_matrix=torch.diag_embed(std**2))


def correlated(mu, std, between):
    return MultivariateNormal(mu, scale_tril=torch.diag_embed(std) + between)


@pytest.mark.parametrize("of", [independent, by_covariance])
def test_a_normal_posterior_of_independent_dimensions_is_one_of_each(of):
    model = Posterior(of)
    vae = understood(model, X, BERNOULLI)
    mu, raw = model.body(X).chunk(2, 1)
    std = nn.functional.softplus(raw)
    for found, expected in zip(vae.posterior(X), (mu, 2 * std.log()), strict=True):
        torch.testing.assert_close(found, expected)
    adapted = exported(model, BERNOULLI)
    outputs = dict(zip(adapted.outputs("encoder"), run_module(adapted.modules["encoder"], [X]), strict=True))
    torch.testing.assert_close(outputs["std"], std.detach())


@pytest.mark.parametrize("of", [independent, by_covariance])
def test_such_a_posterior_is_exported(of, tmp_path):
    torch.manual_seed(1)
    model = Posterior(of)
    export(model, tmp_path / "out", example=X, likelihood="bernoulli", prior="normal", formats=("onnx",))
    q = vae_runtime.load(tmp_path / "out").encode(X.numpy())
    torch.testing.assert_close(torch.tensor(q.std), model.encode(X).variance.sqrt().detach())


def test_correlated_dimensions_are_refused_and_noticed_in_training():
    for understand in (lambda model: exported(model, BERNOULLI), lambda model: understood(model, X, BERNOULLI)):
        with pytest.raises(ExportError, match=r"MultivariateNormal whose covariance is not diagonal; .*\(mu, logvar\)"):
            understand(Posterior(correlated))
    # Weights of zero hide it, until they are trained.
    model = Posterior(correlated)
    nn.init.zeros_(model.between.weight)
    nn.init.zeros_(model.between.bias)
    vae = understood(model, X, BERNOULLI)
    assert vae.posterior(X)[0].shape == (8, 3)
    nn.init.ones_(model.between.bias)
    with pytest.raises(TrainingError, match="whose covariance is not diagonal"):
        vae.posterior(X)


@pytest.mark.parametrize(
    ("of", "training", "export"),
    [
        (
            lambda mu, std, _: LogNormal(mu, std),
            "a function that returns its base_dist, which is normal",
            "its base_dist",
        ),
        (
            lambda mu, std, _: Laplace(mu, std),
            r"return a normal posterior from encode, \(mu, logvar\), or train",
            "points",
        ),
    ],
)
def test_the_advice_on_another_posterior_fits(of, training, export):
    with pytest.raises(ExportError, match=training) as error:
        understood(Posterior(of), X, BERNOULLI)
    assert "points" not in str(error.value)
    assert "pass encode=" not in str(error.value)
    with pytest.raises(ExportError, match=f"pass encode=, a function .*{export}"):
        exported(Posterior(of), BERNOULLI)


class Swapped(Plain):
    def encode(self, x):
        return super().encode(x)[::-1]

    def forward(self, x):
        logvar, mu = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar))


def test_a_training_asks_for_methods():
    with pytest.raises(
        ExportError, match=r"; give the model a method for encode=, a function that returns \(mu, logvar\)$"
    ):
        understood(Swapped(), X, BERNOULLI)
    with pytest.raises(ExportError, match=r"; pass encode=, a function that returns \(mu, logvar\)$"):
        exported(Swapped(), BERNOULLI)


class Tokens(nn.Module):
    """Its encode looks tokens up in a table; `read` makes indices of what it is given."""

    def __init__(self, read):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head, self.read = nn.Embedding(5, 2), nn.Linear(12, 60), read

    def encode(self, x):
        return self.table(self.read(x)).chunk(2, -1)

    def decode(self, z):
        return Categorical(logits=self.head(z.flatten(1)).view(-1, 12, 5))

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar))


def test_an_encode_of_tokens_is_told_that_training_gives_floats():
    tokens = torch.randint(0, 5, (8, 12)).float()
    with pytest.raises(
        ExportError, match=r"encode: fails on the example, .*; a training gives float32, so call x\.long\(\) in encode"
    ):
        understood(Tokens(lambda x: x), tokens, Declaration())
    assert understood(Tokens(lambda x: x.long()), tokens, Declaration()).likelihood == "categorical"
    # No advice where the integers fail, too.
    with pytest.raises(ExportError, match="encode: fails on the example") as error:
        understood(Tokens(lambda x: x.long() + 9), tokens, Declaration())
    assert "long()" not in str(error.value)


@pytest.mark.parametrize("layer", ["head", "body"])
def test_a_layer_that_begins_at_zero_is_told_how_to_begin(layer):
    model = Plain()
    nn.init.zeros_(getattr(model, layer).weight)
    with pytest.raises(
        ExportError, match=r"no output depends on [xz]; if a layer begins with weights of zero, .*std=1e-2"
    ):
        understood(model, X, BERNOULLI)
    with pytest.raises(ExportError, match=r"no output depends on [xz]; check that the model is trained"):
        probe(exported(model, BERNOULLI))
    nn.init.normal_(getattr(model, layer).weight, std=1e-2)
    assert understood(model, X, BERNOULLI).latent == 3


class Parts(nn.Module):
    """A forward with batch normalization, and submodules that are its halves under names of their own."""

    def __init__(self):
        super().__init__()
        self.inference_model = nn.Sequential(nn.Linear(12, 6), nn.BatchNorm1d(6))
        self.generative_model = nn.Linear(3, 12)

    def forward(self, x):
        mu, logvar = self.inference_model(x).chunk(2, 1)
        return self.generative_model(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), mu, logvar


def test_halves_under_other_names_are_asked_for_by_name():
    with pytest.raises(
        ExportError, match=r"forward: changes buffers.*; give the model methods encode and decode, or"
    ) as error:
        understood(Parts(), X, BERNOULLI)
    assert str(error.value).endswith("each (its submodules are inference_model, generative_model)")
    named = dataclasses.replace(BERNOULLI, encode="inference_model", decode="generative_model")
    assert understood(Parts(), X, named).latent == 3


def test_answers_of_another_size_than_the_observations_are_warned_of():
    def warned(of, x=X, declared=GAUSSIAN):
        vae = understood(Plain(of), x, declared)
        # The record is of the model, also once it is trained.
        assert not any("warning" in line for line in vae.recognised)
        return vae.warnings

    def of_bytes(model, z):
        return 255 * torch.sigmoid(model.head(z))

    (line,) = warned(of_bytes)
    assert re.search(r"decode gives [\d.]+ … 1\d\d before the training, for observations of 0\.0\d+ … 0\.9", line)
    assert not warned(of_bytes, 255 * X)
    assert not warned(lambda model, z: model.head(z))
    # Logits are of no such size.
    assert not warned(lambda model, z: 100 * model.head(z), declared=BERNOULLI)
