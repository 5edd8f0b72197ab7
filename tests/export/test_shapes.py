"""A model may take and give observations in another shape than the example's; the bundle has the example's."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional

import vae_export
import vae_runtime
from vae_export.errors import ExportError
from vae_export.training.own_vae import understood as trainable
from vae_export.understand.adapt import adapt
from vae_export.understand.adapted import run_module
from vae_export.understand.declaration import Declaration
from vae_export.understand.state import unchanged

X = torch.rand(6, 1, 3, 4, generator=torch.Generator().manual_seed(0))
Z = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def understood(model, x=X, **declaration):
    model = model.eval()
    with unchanged(model):
        return adapt(model, x, Declaration(**declaration))


def has(adapted, words):
    return any(words in line for line in adapted.recognised)


class Flattening(nn.Module):
    """As PyTorch's own example: forward flattens the pictures, encode takes and decode gives them flat."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.mu, self.logvar = nn.Linear(12, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.head = nn.Linear(4, 12)

    def encode(self, x):
        h = functional.relu(self.first(x))
        return self.mu(h), self.logvar(h)

    def decode(self, z):
        return torch.sigmoid(self.head(z))

    def flat(self, x):
        return x.view(-1, 12)

    def forward(self, x):
        mu, logvar = self.encode(self.flat(x))
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), mu, logvar


class Submodules(Flattening):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(12, 8), nn.Sequential(nn.Linear(4, 12), nn.Sigmoid())

    encode = decode = None

    def forward(self, x):
        mu, logvar = self.encoder(x.flatten(1)).chunk(2, 1)
        return self.decoder(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), x


class ByKeyword(Flattening):
    def forward(self, x):
        mu, logvar = self.encode(x=self.flat(x))
        return self.decode(z=mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), mu, logvar


class Conditional(Flattening):
    def encode(self, x, shift):
        return super().encode(x + shift)

    def forward(self, x, shift):
        mu, logvar = self.encode(self.flat(x), shift)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), mu, logvar


@pytest.mark.parametrize("cls", [Flattening, Submodules, ByKeyword])
def test_the_observation_takes_the_shape_in_which_forward_passes_it(cls):
    model = cls()
    adapted = understood(model, likelihood="bernoulli")
    assert has(adapted, "encode: takes each observation in the shape [12], as forward passes it")
    assert has(adapted, "decode: its answer [12] is given the shape of an observation, [1, 3, 4]")
    assert has(adapted, "checked: forward")
    assert not has(adapted, "halves")
    mu, logvar, _ = run_module(adapted.modules["encoder"], [X])
    encode = model.encode if model.encode else lambda x: model.encoder(x).chunk(2, 1)
    torch.testing.assert_close((mu, logvar), tuple(each.detach() for each in encode(X.flatten(1))))
    mean, logits = run_module(adapted.modules["decoder"], [Z])
    own = (model.decode or model.decoder)(Z).detach().view(-1, 1, 3, 4)
    torch.testing.assert_close(mean, own)
    torch.testing.assert_close(logits.sigmoid(), own)


def test_conditions_go_along():
    model, shift = Conditional().eval(), torch.rand(6, 1)
    with unchanged(model):
        adapted = adapt(model, X, Declaration(posterior="logvar"), conditions={"shift": shift})
    mu, *_ = run_module(adapted.modules["encoder"], [X, shift])
    torch.testing.assert_close(mu, model.encode(X.flatten(1), shift)[0].detach())


def test_a_bundle_of_pictures_out_of_a_model_of_vectors(tmp_path):
    model = Flattening().eval()
    vae_export.export(model, tmp_path / "b", example=X, likelihood="bernoulli", formats=())
    vae = vae_runtime.load(tmp_path / "b")
    x = torch.rand(3, 1, 3, 4)
    with torch.no_grad():
        expected = model.decode(model.encode(x.view(-1, 12))[0]).view(-1, 1, 3, 4).numpy()
    np.testing.assert_allclose(vae.reconstruct(x.numpy()), expected, atol=1e-5)
    assert vae.sample(2, seed=0).shape == (2, 1, 3, 4)
    bits = x.round().numpy()
    scores = vae.score(bits, seed=0)
    with torch.no_grad():
        mu, logvar = model.encode(torch.from_numpy(bits).view(-1, 12))
    kl = 0.5 * (mu**2 + logvar.exp() - 1 - logvar).sum(1)
    np.testing.assert_allclose(scores.kl, kl, rtol=1e-4)
    assert np.isfinite(scores.elbo).all()


class Reordering(Flattening):
    """The order of the numbers is another one in forward: no reshape shows which observation encode is given."""

    def flat(self, x):
        return x.transpose(2, 3).reshape(-1, 12)


class Clamping(Flattening):
    """A bound that the example does not reach."""

    def forward(self, x):
        mu, logvar = self.encode(self.flat(x))
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar.clamp(-6, 2))), mu, logvar


def test_another_order_is_no_reshape():
    model = Reordering()
    adapted = understood(model)
    assert has(adapted, "halves of forward")
    assert not has(adapted, "is given the shape of an observation")
    assert adapted.signature.likelihood.shape == (12,)
    mu, *_ = run_module(adapted.modules["encoder"], [X])
    torch.testing.assert_close(mu, model.encode(model.flat(X))[0].detach())
    with pytest.raises(ExportError, match=r"decode: expected observations of shape \[1, 3, 4\], got \[12\]"):
        trainable(Reordering(), X, Declaration(likelihood="bernoulli", prior="normal"))


def test_a_bound_between_is_seen_around_a_reshape():
    model = Clamping()
    adapted = understood(model)
    assert has(adapted, "halves of forward")
    with torch.no_grad():
        model.logvar.bias += 10
        _, _, std = run_module(adapted.modules["encoder"], [X])
    assert float(std.max()) <= float(np.exp(1)) + 1e-4


class Answer(Flattening):
    """Its encode takes pictures; its decode's answer is in another shape."""

    def __init__(self, shape, view=(12,)):
        super().__init__()
        self.shape, self.view = shape, view

    def encode(self, x):
        return super().encode(x.reshape(-1, *self.view).flatten(1))

    def decode(self, z):
        return super().decode(z).view(-1, *self.shape)

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), mu, logvar


class Unseen(Answer):
    """No reshape of an observation shows the order of decode's numbers."""

    def __init__(self, shape):
        super().__init__(shape)
        self.first = nn.Conv2d(1, 16, (3, 4))

    def encode(self, x):
        h = functional.relu(self.first(x)).mean((2, 3))
        return self.mu(h), self.logvar(h)


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (Answer((12,)), None),
        (Answer((3, 4)), None),
        (Answer((1, 12), (1, 12)), None),
        (Answer((1, 12)), (1, 12)),
        (Answer((1, 4, 3), (1, 4, 3)), (1, 4, 3)),
        (Unseen((3, 4)), None),
        (Unseen((12,)), (12,)),
    ],
)
def test_an_answer_is_given_the_shape_that_the_model_shows(model, found):
    # Without a likelihood the bundle gives what decode gives.
    shape = tuple(model.decode(Z).shape[1:])
    assert understood(model).signature.likelihood.shape == (None if shape == (1, 3, 4) else shape)
    adapted = understood(model, likelihood="gaussian")
    assert adapted.signature.likelihood.shape == found
    assert has(adapted, "is given the shape of an observation") == (found is None)
    answer = run_module(adapted.modules["decoder"], [Z])[0]
    torch.testing.assert_close(answer, model.decode(Z).detach().view(-1, *(found or (1, 3, 4))))


class Vectors(Answer):
    """Convolutions of vectors that encode makes pictures of."""

    def __init__(self):
        super().__init__((1, 3, 4), (1, 3, 4))


class Normals(Flattening):
    def __init__(self):
        super().__init__()
        self.spread = nn.Linear(4, 12)

    def decode(self, z):
        return Normal(self.head(z), functional.softplus(self.spread(z)))


def test_pictures_become_vectors_too():
    model = Vectors()
    adapted = understood(model, X.flatten(1), likelihood="gaussian")
    assert adapted.signature.likelihood.shape is None
    answer = run_module(adapted.modules["decoder"], [Z])[0]
    torch.testing.assert_close(answer, model.decode(Z).detach().flatten(1))


def test_a_scale_is_given_the_shape_of_the_mean():
    model = Normals()
    adapted = understood(model)
    mean, scale = run_module(adapted.modules["decoder"], [Z])
    own = model.decode(Z)
    torch.testing.assert_close(mean, own.loc.detach().view(-1, 1, 3, 4))
    torch.testing.assert_close(scale, own.scale.detach().view(-1, 1, 3, 4))
    vae = trainable(Normals(), X, Declaration())
    parameters, trained = vae.answer(Z)
    torch.testing.assert_close((parameters, trained), (own.loc.view(-1, 1, 3, 4), own.scale.view(-1, 1, 3, 4)))


def test_a_training_takes_pictures():
    model = Flattening()
    vae = trainable(model, X, Declaration(likelihood="bernoulli"))
    mu, _ = vae.posterior(X)
    torch.testing.assert_close(mu, model.encode(X.flatten(1))[0])
    logits, _ = vae.answer(Z)
    torch.testing.assert_close(logits.sigmoid(), model.decode(Z).view(-1, 1, 3, 4))


PICTURES = torch.rand(6, 2, 3, 2, generator=torch.Generator().manual_seed(2))


class Unsettled(Flattening):
    """`shown` makes what forward returns of decode's answer and of the observation: its order is not shown."""

    def __init__(self, shown):
        super().__init__()
        self.shown = shown

    def forward(self, x):
        mu, logvar = self.encode(self.flat(x))
        return self.shown(self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), x), mu, logvar


@pytest.mark.parametrize(
    "shown",
    [
        lambda y, x: y.view(-1, 3, 2, 2),
        lambda y, x: (functional.mse_loss(y, x.permute(0, 2, 3, 1).flatten(1)), y)[1],
    ],
)
def test_an_answer_keeps_its_shape_where_forward_has_another_order(shown):
    adapted = understood(Unsettled(shown), PICTURES, likelihood="bernoulli")
    assert adapted.signature.likelihood.shape == (12,)
    assert not has(adapted, "is given the shape")
    # The partner, whose forward shows the order.
    assert understood(Flattening(), PICTURES, likelihood="bernoulli").signature.likelihood.shape is None


def test_a_sampler_of_a_third_shape_is_refused():
    class ChannelsLast(Flattening):
        def sample(self, n):
            return self.decode(torch.randn(n, 4)).view(n, 3, 2, 2)

    with pytest.raises(ExportError, match="sample: returns something other than decode's answer"):
        understood(ChannelsLast(), PICTURES, likelihood="bernoulli")


@pytest.mark.parametrize(
    "change",
    [lambda x: x.clamp(0, 1), lambda x: x.clamp(-9, 9), lambda x: x / x.abs().amax(1, keepdim=True).clamp(min=1)],
)
def test_what_forward_does_to_observations_beyond_the_example_counts(change):
    class Bounded(Flattening):
        def flat(self, x):
            return change(super().flat(x))

    model = Bounded()
    adapted = understood(model)
    assert has(adapted, "the two halves of forward")
    far = 100 * X - 50
    mu, *_ = run_module(adapted.modules["encoder"], [far])
    torch.testing.assert_close(mu, model.encode(model.flat(far))[0].detach())
