"""Priors given as objects: samplers of pythae, fitted mixtures of scikit-learn, distributions of PyTorch."""

import io

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture
from torch import nn
from torch.distributions import (
    Beta,
    Categorical,
    Independent,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

import vae_runtime
from vae_export import export
from vae_export.errors import ExportError
from vae_export.sources import Examples, model_source
from vae_export.understand.declaration import Declaration
from vae_export.understand.own_prior import prior_of
from vae_export.understand.state import unchanged
from vae_export.understood import understand_source
from vae_runtime.errors import InputError

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
X = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def pythae_model(name="VAE", config=None, **options):
    models = pytest.importorskip("pythae.models")
    torch.manual_seed(0)
    return getattr(models, name)(
        getattr(models, config or f"{name}Config")(input_dim=(1, 4, 4), latent_dim=3, **options)
    ).eval()


def pythae_sampler(name, model, **options):
    samplers = pytest.importorskip("pythae.samplers")
    return getattr(samplers, name)(model, getattr(samplers, f"{name}Config")(**options))


def understood(model, prior=None):
    source = model_source(model, Declaration(prior=prior_of(prior, model)), Examples(X), None)
    with unchanged(source.model):
        return understand_source(source)


def mixture(adapted):
    """The prior of a bundle as a distribution, from the file that a bundle holds."""
    arrays = np.load(io.BytesIO(adapted.prior_file))
    weights, means, factors = (torch.from_numpy(arrays[f"z/{name}"]) for name in ("weights", "means", "factors"))
    parts = MultivariateNormal(means, scale_tril=factors if factors.dim() == 3 else torch.diag_embed(factors))
    return MixtureSameFamily(Categorical(weights), parts)


def test_vamp_has_the_density_of_its_loss():
    model = pythae_model("VAMP", number_components=4)
    model.pseudo_inputs[0].weight.data.uniform_(0, 1)
    model.encoder.log_var.bias.data.fill_(1.5)
    adapted = understood(model)
    z = torch.randn(7, 3)
    with torch.no_grad():
        own = model._log_p_z(z).double()
    found = mixture(adapted).log_prob(z.double())
    # The loss leaves out the constant of the normal.
    torch.testing.assert_close(found, own - 1.5 * np.log(2 * np.pi), rtol=0, atol=1e-5)
    # VAMPSampler bounds the log-variances by a tanh, which is another prior.
    bounded = mixture(understood(model, pythae_sampler("VAMPSampler", model))).log_prob(z.double())
    assert not torch.allclose(bounded, found, atol=1e-3)
    rows = model.pseudo_inputs(model.idle_input).reshape(4, 1, 4, 4)
    with torch.no_grad():
        output = model.encoder(rows)
    parts = Normal(output.embedding, torch.exp(0.5 * torch.tanh(output.log_covariance)))
    expected = torch.logsumexp(parts.log_prob(z[:, None]).sum(-1), 1) - np.log(4)
    torch.testing.assert_close(bounded.float(), expected, rtol=0, atol=1e-5)


def fitted_sampler(model):
    sampler = pythae_sampler("GaussianMixtureSampler", model, n_components=2)
    data = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    data[0, 0, 0, 0] = 1
    sampler.fit(data)
    return sampler


def test_a_fitted_sampler_is_the_prior_whether_given_as_prior_or_as_the_model(tmp_path):
    sampler = fitted_sampler(pythae_model())
    z = torch.randn(7, 3)
    for adapted in (understood(sampler.model, sampler), understood(sampler), understood(sampler.model, sampler.gmm)):
        assert adapted.signature.latent.prior.covariance == "full"
        found = mixture(adapted).log_prob(z.double()).numpy()
        np.testing.assert_allclose(found, sampler.gmm.score_samples(z.numpy()), atol=1e-5)
    assert understood(sampler.model).signature.latent.prior.kind == "normal"
    export(sampler, tmp_path / "bundle", example=X, formats=("onnx",))
    drawn = vae_runtime.load(tmp_path / "bundle").prior(4000, seed=0)
    np.testing.assert_allclose(drawn.mean(0), sampler.gmm.weights_ @ sampler.gmm.means_, atol=0.1)


@pytest.mark.parametrize(("name", "kind"), [("NormalSampler", "normal"), ("HypersphereUniformSampler", "sphere")])
def test_samplers_that_fit_nothing(name, kind):
    model = pythae_model("AE") if kind == "sphere" else pythae_model()
    adapted = understood(model, pythae_sampler(name, model))
    assert adapted.signature.latent.prior.kind == kind


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("MAFSampler", "a normalizing flow"),
        ("IAFSampler", "a normalizing flow"),
        ("TwoStageVAESampler", "a second VAE"),
    ],
)
def test_samplers_that_no_bundle_carries_are_refused_by_name(name, what):
    model = pythae_model()
    sampler = pythae_sampler(name, model)
    for model_or_sampler, prior in ((model, sampler), (sampler, None)):
        with pytest.raises(ExportError, match=rf'{name} draws latents with {what}.*prior="mixture:10"'):
            understood(model_or_sampler, prior)


def test_a_sampler_of_another_model_or_without_a_fit_is_refused():
    with pytest.raises(InputError, match="this NormalSampler samples another model"):
        understood(pythae_model(), pythae_sampler("NormalSampler", pythae_model()))
    model = pythae_model()
    with pytest.raises(ExportError, match="not fitted; call its fit"):
        understood(model, pythae_sampler("GaussianMixtureSampler", model))


def test_every_sampler_of_pythae_is_known():
    from vae_export.understand.families.pythae import SAMPLERS

    samplers = pytest.importorskip("pythae.samplers")
    names = {name for name in dir(samplers) if name.endswith("Sampler")}
    assert names <= SAMPLERS.keys()
    assert not {*names, "NewSampler"} <= SAMPLERS.keys()


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 2), nn.Linear(2, 4)

    def encode(self, x):
        return self.encoder(x.mean((1, 2)))

    def decode(self, z):
        return self.decoder(z)[:, None, None].expand(-1, 1, 4, 4)


@pytest.mark.parametrize("kind", ["full", "tied", "diag", "spherical"])
def test_a_mixture_of_scikit_learn(kind):
    z = np.random.default_rng(0).normal(size=(80, 2)) @ [[1.0, 0.5], [0.0, 2.0]] + 3
    fitted = GaussianMixture(3, covariance_type=kind, random_state=0).fit(z)
    found = mixture(understood(Plain(), fitted)).log_prob(torch.from_numpy(z)).numpy()
    np.testing.assert_allclose(found, fitted.score_samples(z), atol=1e-8)


COVARIANCE = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
DISTRIBUTIONS = [
    Independent(Normal(torch.tensor([1.0, -1.0]), torch.tensor([0.5, 2.0])), 1),
    MultivariateNormal(torch.tensor([1.0, -1.0]), COVARIANCE),
    MixtureSameFamily(
        Categorical(torch.tensor([0.2, 0.8])), Independent(Normal(torch.eye(2), torch.full((2, 2), 0.3)), 1)
    ),
    MixtureSameFamily(Categorical(torch.tensor([0.2, 0.8])), MultivariateNormal(torch.eye(2), COVARIANCE)),
]


@pytest.mark.parametrize("prior", DISTRIBUTIONS, ids=lambda prior: type(prior).__name__)
def test_a_distribution_of_pytorch(prior):
    z = torch.randn(6, 2)
    found = mixture(understood(Plain(), prior)).log_prob(z.double())
    torch.testing.assert_close(found.float(), prior.log_prob(z), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("prior", "error", "words"),
    [
        (Beta(torch.ones(2), torch.ones(2)), InputError, "a sampler of pythae, got Beta"),
        (object(), InputError, "a sampler of pythae, got object"),
        ("gauss", InputError, "got 'gauss'"),
        (Independent(Normal(torch.zeros(3), torch.ones(3)), 1), ExportError, "expected 2 dimensions"),
    ],
    # Names without an address: workers must collect the same tests.
    ids=["another distribution", "an object", "a wrong name", "another size"],
)
def test_what_is_no_prior_of_this_latent_is_refused(prior, error, words):
    with pytest.raises(error, match=words):
        understood(Plain(), prior)
