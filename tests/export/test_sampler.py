"""A model's own sampler is found under other names and with other parameters than the usual ones."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal
from torch.nn import functional

from vae_export.errors import ExportError
from vae_export.understand import sampler
from vae_export.understand.adapt import adapt
from vae_export.understand.adapted import run_module
from vae_export.understand.declaration import Declaration
from vae_export.understand.state import unchanged

X = torch.rand(6, 12, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Linear(12, 8), nn.Linear(4, 12)

    def encode(self, x):
        return self.body(x).chunk(2, 1)

    def decode(self, z):
        return torch.tanh(self.head(z))

    def forward(self, x):
        mean, logvar = self.encode(x)
        return self.decode(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar))


class OtherCount(Plain):
    def sample(self, rows):
        return self.decode(3 * torch.randn(rows, 4) + 1)


class OtherName(Plain):
    def synthesize(self, n):
        return self.decode(3 * torch.randn(n, 4) + 1)


class Static(Plain):
    @staticmethod
    def sample_latents(n):
        return 3 * torch.randn(n, 4) + 1


class OfAShape(Plain):
    def sample(self, shape):
        return self.decode(3 * torch.randn(shape) + 1)


class Temperature(Plain):
    def sample(self, num_samples, temperature):
        return self.decode(3 * temperature * torch.randn(num_samples, 4) + 1)


class Getter(Plain):
    def get_prior(self, n):
        return Normal(torch.ones(n, 4), 3.0)


@pytest.mark.parametrize("cls", [OtherCount, OtherName, Static, OfAShape, Temperature, Getter])
def test_a_sampler_in_other_words_shows_its_prior(cls):
    adapted = understood(cls())
    assert adapted.signature.latent.prior.kind == "mixture"
    assert any(line.startswith("prior: a normal with a mean and variances of its own") for line in adapted.recognised)


def test_without_its_name_and_its_code_a_sampler_is_passed_over(monkeypatch):
    monkeypatch.setattr(sampler, "_DRAWING", ("sample",))
    monkeypatch.setattr(sampler, "_DRAWS", set())
    assert understood(OtherName()).signature.latent.prior.assumed


class OfAnObservation(Plain):
    def sample(self, image):
        return self.forward(image)


class OfTwo(Plain):
    def sample(self, mean, logvar):
        return mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)


@pytest.mark.parametrize("cls", [OfAnObservation, OfTwo])
def test_a_method_of_something_else_is_no_sampler(cls):
    assert understood(cls()).signature.latent.prior.assumed


class Map(nn.Module):
    """Its sampler draws in one row what its latent has in several axes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Linear(12, 16), nn.Linear(8, 12)

    def encode(self, x):
        return self.body(x).view(-1, 4, 2, 2).chunk(2, 1)

    def decode(self, z):
        return self.head(z.flatten(1))

    def forward(self, x):
        mean, logvar = self.encode(x)
        return self.decode(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar))

    def sample(self, n):
        return self.decode(torch.randn(n, 8).view(n, 2, 2, 2))


class Transposed(Map):
    def sample(self, n):
        return self.decode(torch.randn(n, 8).view(n, 2, 2, 2).transpose(1, 2) + 1)


def test_noise_drawn_in_one_row_is_followed():
    assert understood(Map()).signature.latent.prior.kind == "normal"
    assert understood(Transposed()).signature.latent.prior.kind != "normal"


class Direction(Plain):
    """Only directions are decoded, and its mean is one."""

    def encode(self, x):
        mean, second = super().encode(x)
        return functional.normalize(mean, dim=1), second

    def forward(self, x):
        mean, logvar = self.encode(x)
        return self.decode(functional.normalize(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar), dim=1))


def test_a_step_behind_the_noise_that_leaves_the_mean_is_seen():
    assert "before or after" in understood(Direction()).signature.latent.prior.reason


class Logits(Plain):
    """Its decode gives logits, and so does its sampler."""

    def decode(self, z):
        return self.head(z)

    def sample(self, n):
        return self.decode(torch.randn(n, 4))


class Scaled(Logits):
    def sample(self, n):
        return 2 * super().sample(n)


class LogitsInForward(Logits):
    """Layers of a forward, with a sampler that goes through the second half of them."""

    encode = decode = None

    def forward(self, x):
        mean, logvar = self.body(x).chunk(2, 1)
        return self.head(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar))

    def sample(self, n):
        return self.head(torch.randn(n, 4))


class Tokens(Plain):
    """Its decode gives logits of 3 classes along the first axis."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 36)

    def decode(self, z):
        return self.head(z).view(-1, 3, 12)

    def sample(self, n):
        return self.decode(torch.randn(n, 4))


class OtherTokens(Tokens):
    def sample(self, n):
        return super().sample(n).flip(1)


class Normals(Plain):
    """Its sampler draws observations, as the distribution does that decode returns."""

    def decode(self, z):
        return Normal(self.head(z), 0.1)

    def forward(self, x):
        mean, logvar = self.encode(x)
        return self.decode(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar)).mean

    def sample(self, n):
        return self.decode(torch.randn(n, 4)).sample()


class Noisy(Plain):
    def sample(self, n):
        x = self.decode(torch.randn(n, 4))
        return x + 0.1 * torch.randn_like(x)


class NoisyPixels(Noisy):
    def sample(self, n):
        return 127.5 * (1 + super().sample(n))


class ByRows(Plain):
    """Draws and decodes each row by itself."""

    def sample(self, n):
        return torch.cat([self.decode(torch.randn(1, 4)) for _ in range(n)])


@pytest.mark.parametrize("cls", [Normals, Noisy, ByRows])
def test_a_sampler_may_draw_observations_around_the_mean(cls):
    adapted = understood(cls())
    assert adapted.signature.latent.prior.kind == "normal"
    assert f"checked: {cls.__name__}.sample, which draws this prior" in adapted.recognised


def test_noise_hides_no_change_of_the_answer():
    with pytest.raises(ExportError, match="returns something other than decode's answer"):
        understood(NoisyPixels())


def test_a_sampler_may_return_logits():
    for model, likelihood, x in ((Logits(), "bernoulli", X), (Tokens(), "categorical", (3 * X).floor())):
        adapted = understood(model, x, likelihood=likelihood, posterior="logvar")
        assert adapted.signature.latent.prior.kind == "normal"
        assert f"checked: {type(model).__name__}.sample, which draws this prior" in adapted.recognised
        z = torch.randn(5, 4)
        own = model.decode(z).detach()
        mean, logits = run_module(adapted.modules["decoder"], [z])
        torch.testing.assert_close(logits, own if likelihood == "bernoulli" else own.movedim(1, -1))
        torch.testing.assert_close(mean, own.sigmoid() if likelihood == "bernoulli" else own.softmax(1).movedim(1, -1))
    prior = understood(LogitsInForward(), likelihood="bernoulli").signature.latent.prior
    assert prior.kind == "normal"
    assert not prior.assumed


@pytest.mark.parametrize(("cls", "likelihood"), [(Scaled, "bernoulli"), (OtherTokens, "categorical")])
def test_a_sampler_that_returns_other_logits_is_refused(cls, likelihood):
    x = (3 * X).floor() if likelihood == "categorical" else X
    with pytest.raises(ExportError, match="returns something other than decode's answer"):
        understood(cls(), x, likelihood=likelihood, posterior="logvar")


def understood(model, x=X, **declaration):
    model = model.eval()
    with unchanged(model):
        return adapt(model, x, Declaration(**declaration))
