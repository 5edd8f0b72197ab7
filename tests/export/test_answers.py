"""Which latent, and which tensor of an answer, is which: by names and shapes where a model gives several."""

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Cauchy, Normal, SigmoidTransform, TransformedDistribution
from torch.nn import functional

from vae_export.errors import ExportError
from vae_export.sources import Examples, model_source
from vae_export.understand import halves
from vae_export.understand.adapt import adapt
from vae_export.understand.adapted import run_module
from vae_export.understand.declaration import Declaration
from vae_export.understand.state import unchanged
from vae_runtime.errors import InputError

X = torch.rand(6, 12, generator=torch.Generator().manual_seed(0))


def understood(model, **declaration):
    model = model.eval()
    with unchanged(model):
        return adapt(model, X, Declaration(**declaration))


def decoded(adapted):
    latents = [adapted.examples[latent.name] for latent in adapted.signature.latents]
    return latents, run_module(adapted.modules["decoder"], latents)[0]


class Levels(nn.Module):
    """Two latents of one shape, and no forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.top, self.bottom = nn.Linear(12, 16), nn.Linear(4, 12), nn.Linear(4, 12)

    def halves(self, x):
        return self.body(x).chunk(4, 1)

    def decode(self, z_top, z_bottom):
        return self.top(z_top) + torch.tanh(self.bottom(z_bottom))


class Named(Levels):
    """Its encode has them in another order than decode."""

    def encode(self, x):
        a, b, c, d = self.halves(x)
        return {"bottom": Normal(a, functional.softplus(b)), "top": Normal(c, functional.softplus(d))}


class Flat(Levels):
    def encode(self, x):
        a, b, c, d = self.halves(x)
        return c, a, d, b


class Paired(Levels):
    def encode(self, x):
        a, b, c, d = self.halves(x)
        return (c, d), (a, b)


def test_latents_come_in_the_order_of_decodes_names():
    model = Named()
    adapted = understood(model)
    assert [latent.name for latent in adapted.signature.latents] == ["top", "bottom"]
    (top, bottom), answer = decoded(adapted)
    torch.testing.assert_close((top, bottom), (model.halves(X)[2], model.halves(X)[0]))
    torch.testing.assert_close(answer, model.decode(top, bottom))
    assert not torch.allclose(answer, model.decode(bottom, top))


def test_a_flat_answer_of_one_shape_without_a_forward_is_ambiguous():
    with pytest.raises(ExportError, match=r"returns 4 tensors of one shape, and no forward shows .* returns pairs"):
        understood(Flat(), posterior="logvar")
    model = Paired()
    (top, _), _ = decoded(understood(model, posterior="logvar"))
    torch.testing.assert_close(top, model.halves(X)[2])


class Whole(nn.Module):
    """A forward alone."""

    def __init__(self, latent=4):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last, self.next = nn.Linear(12, 2 * latent), nn.Linear(latent, 12), nn.Linear(latent, 12)

    def forward(self, x):
        mean, logvar = self.first(x).chunk(2, 1)
        return self.answer(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar))


class Predicting(Whole):
    def answer(self, z):
        return {"pred": self.next(z), "x_recon": self.last(z)}


class LatentFirst(Whole):
    """The latent has the observation's shape, and comes first."""

    def __init__(self):
        super().__init__(12)

    def answer(self, z):
        return z, self.last(z)


class Unnamed(Whole):
    def answer(self, z):
        return self.last(z), self.next(z)


@pytest.mark.parametrize("cls", [Predicting, LatentFirst, Unnamed])
def test_the_reconstruction_is_told_from_other_tensors(cls):
    model = cls()
    adapted = understood(model)
    (z,), answer = decoded(adapted)
    torch.testing.assert_close(answer, model.last(z))
    told = any("item 1 of what forward returns, the first of 2 that have" in line for line in adapted.recognised)
    assert told == (cls is Unnamed)


def test_without_the_names_the_first_is_taken(monkeypatch):
    monkeypatch.setattr(halves, "_NAMED", halves.re.compile("nothing"))
    model = Predicting()
    (z,), answer = decoded(understood(model))
    torch.testing.assert_close(answer, model.next(z))


class Modalities(nn.Module):
    """Its decode gives a mapping with the observation last, under a name of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.picture, self.attributes = nn.Linear(12, 8), nn.Linear(4, 12), nn.Linear(4, 3)

    def encode(self, x):
        return self.first(x).chunk(2, 1)

    def decode(self, z):
        return {"attributes": self.attributes(z), "picture": self.picture(z)}

    def forward(self, x):
        mean, logvar = self.encode(x)
        return self.decode(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar))


def test_the_observation_of_a_mapping_is_known_by_its_shape():
    model = Modalities()
    adapted = understood(model)
    (z,), answer = decoded(adapted)
    torch.testing.assert_close(answer, model.picture(z))
    assert [output.name for output in adapted.signature.likelihood.outputs] == ["attributes"]


class Distributed(Modalities):
    def decode(self, z):
        return self.of(self.picture(z))


@pytest.mark.parametrize(
    ("of", "name"),
    [
        (lambda h: Cauchy(h, 1.0), "Cauchy"),
        (lambda h: TransformedDistribution(Normal(h, 0.5), [SigmoidTransform()]), "TransformedDistribution"),
    ],
)
def test_a_distribution_without_a_mean_is_refused_for_that(of, name):
    model = Distributed()
    model.of = of
    with pytest.raises(ExportError, match=f"decode: returns a {name}, which has no mean .*; pass decode="):
        understood(model)
    model.of = lambda h: Normal(h, 0.5)
    assert understood(model).signature.likelihood.kind == "gaussian"


def test_a_sparse_example_is_refused_before_it_is_read():
    with pytest.raises(InputError, match=r"^example: expected a dense tensor, got the layout sparse_coo; pass example"):
        model_source(Modalities(), Declaration(), Examples(X.to_sparse()), None)
    assert model_source(Modalities(), Declaration(), Examples(X), None).example.shape == (6, 12)


class Classifying(Modalities):
    """Its forward returns classes beside a reconstruction that decode does not give."""

    def decode(self, z):
        return self.picture(z)

    def forward(self, x):
        mean, logvar = self.encode(x)
        z = torch.softmax(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar), 1)
        return self.decode(z), Categorical(logits=self.attributes(z))


def test_a_distribution_without_a_mean_hides_no_difference():
    assert any("halves of forward" in line for line in understood(Classifying()).recognised)
