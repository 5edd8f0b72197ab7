"""What a model states of its latents in attributes, configurations and answers: a scale, and a prior."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Laplace, Normal

from vae_export.errors import ExportError
from vae_export.understand.adapt import adapt
from vae_export.understand.declaration import Declaration
from vae_export.understand.state import unchanged

X = torch.rand(6, 12, generator=torch.Generator().manual_seed(0))
ONES = [1.0] * 4


class Plain(nn.Module):
    def __init__(self, **stated):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.head = nn.Linear(12, 8), nn.Linear(4, 12)
        for name, value in stated.items():
            if isinstance(value, torch.Tensor):
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def encode(self, x):
        return self.body(x).chunk(2, 1)

    def decode(self, z):
        return self.head(z)

    def sampled(self, x):
        mean, logvar = self.encode(x)
        return mean, logvar, self.decode(mean + torch.randn_like(mean) * torch.exp(0.5 * logvar))

    def forward(self, x):
        return self.sampled(x)[2]


class Class(Plain):
    prior_std = 3.0


class Returning(Plain):
    def __init__(self, **answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        mean, logvar, recon = self.sampled(x)
        return {"recon": recon, "mu": mean, "logvar": logvar, **{name: f(mean) for name, f in self.answer.items()}}


class Scaling(Plain):
    """Its encode and decode scale the latents themselves."""

    def __init__(self):
        super().__init__(scale_factor=0.25)

    def encode(self, x):
        mean, logvar = super().encode(x)
        return self.scale_factor * mean, logvar

    def decode(self, z):
        return super().decode(z / self.scale_factor)


class Within(Plain):
    """Wraps a model of latents for another one."""

    def __init__(self, **config):
        super().__init__()
        del self.body, self.head
        self.vae = Plain(config=SimpleNamespace(**config))

    def encode(self, x):
        return self.vae.encode(2 * x - 1)

    def decode(self, z):
        return self.vae.decode(z)


def understood(model):
    model = model.eval()
    with unchanged(model):
        return adapt(model, X, Declaration()).signature.latent


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (Plain(prior_std=2), "prior_std"),
        (Plain(prior_sigma=[2.0] * 4), "prior_sigma"),
        (Plain(prior_scale=np.full(4, 2.0)), "prior_scale"),
        (Plain(prior={"loc": 0.0, "scale": 3.0}), "prior"),
        (Plain(p_logvar=0.5), "p_logvar"),
        (Class(), "prior_std"),
        (Plain(config=SimpleNamespace(prior_std=3.0)), "prior_std"),
        (Plain(hparams={"model": {"prior_mean": 1.5}}), "prior_mean"),
        (Plain(prior="laplace"), "prior"),
        (Plain(cfg={"prior_type": "vamp"}), "prior_type"),
    ],
)
def test_a_stated_prior_is_evidence(model, name):
    prior = understood(model).prior
    assert prior.kind == "none"
    assert f"the model states {name}, which may be another prior's" in prior.reason


@pytest.mark.parametrize(
    "stated",
    [
        {"prior_std": 1},
        {"prior_mean": [0.0] * 4},
        {"prior": "normal"},
        {"prior": "standard_normal"},
        {"prior_type": "N(0, I)"},
        {"config": {"prior_weight": 0.1, "prior_warmup": 10, "n_prior_samples": 5}},
        {"hparams": {"prior_std": 1.0}},
        {"prior_samples": 500},
        {"scale_factor": 2.0},
        {"scale_factor": 1},
        {"config": {"scale": 0.3, "scale_factors": [2, 2, 2]}},
        {"latent_scale": True},
        {"z_mean": torch.rand(6, 9)},
    ],
)
def test_what_states_no_other_prior_is_none(stated):
    prior = understood(Plain(**stated)).prior
    assert (prior.kind, prior.assumed) == ("normal", True)


@pytest.mark.parametrize(
    "answer",
    [
        {"prior_mu": lambda mean: mean + 1},
        {"p_mu": lambda mean: 0.5 + torch.zeros_like(mean)},
        {"prior": lambda mean: Laplace(torch.zeros_like(mean), 1.0)},
        {"prior": lambda mean: (torch.zeros_like(mean), 2 + torch.zeros_like(mean))},
    ],
)
def test_a_returned_prior_is_evidence(answer):
    assert f"forward returns {next(iter(answer))}, which may be" in understood(Returning(**answer)).prior.reason


def test_a_returned_standard_normal_is_none():
    model = Returning(prior_mu=torch.zeros_like, prior=lambda mean: Normal(torch.zeros_like(mean), 1.0))
    assert understood(model).prior.kind == "normal"


@pytest.mark.parametrize(
    ("model", "scale", "shift"),
    [
        (Plain(scale_factor=0.18), 0.18, 0.0),
        (Plain(config={"scale_factor": 0.18, "shift_factor": 0.1}), 0.18, 0.1),
        (Plain(cfg=SimpleNamespace(vae=SimpleNamespace(scaling_factor=0.3))), 0.3, 0.0),
        (
            Plain(latent_mean=torch.full((1, 4, 1, 1), 0.5), latent_std=torch.full((1, 4, 1, 1), 2.0)),
            (0.5,) * 4,
            (0.5,) * 4,
        ),
        (Plain(config={"latent_mean": [0.5] * 4, "latent_std": [2.0] * 4}), (0.5,) * 4, (0.5,) * 4),
        # Applied by encode and decode themselves.
        (Scaling(), 1.0, 0.0),
    ],
)
def test_a_stated_scale_is_carried_unless_it_is_applied(model, scale, shift):
    latent = understood(model)
    assert latent.prior.kind == "none"
    assert "another model supplies the latents" in latent.prior.reason
    assert (latent.scale, latent.shift) == (scale, shift)


@pytest.mark.parametrize(
    "stated", [{"z_scale": 0.3}, {"config": {"latent_scaling": 0.3}}, {"latents_scale": [0.3] * 4}]
)
def test_a_scale_without_a_direction_is_asked_for(stated):
    latent = understood(Plain(**stated))
    assert latent.prior.reason.endswith("which way it takes them is unknown: pass latent_scale= and latent_shift=")
    assert latent.scale == 1.0


class Pixels(Plain):
    """Its decode takes a field of the answer of a part that is named as a draw is."""

    forward = nn.Module.forward

    def encode(self, x):
        return super().encode(x)[0]

    def decode(self, z):
        return SimpleNamespace(sample=self.head(z)).sample / 2 + 0.5


class Noisy(Pixels):
    def loss(self, x):
        z = self.encode(x)
        return self.decode(z + torch.rand_like(z))


def test_a_field_named_sample_is_no_draw():
    latent = understood(Pixels())
    assert (latent.posterior.kind, latent.prior.kind) == ("none", "none")
    with pytest.raises(ExportError, match="and loss draws"):
        understood(Noisy())


def test_a_part_with_a_scale_is_evidence():
    assert "its part vae (Plain) says" in understood(Within(scaling_factor=0.18)).prior.reason
    assert understood(Within(hidden=3)).prior.kind == "normal"
