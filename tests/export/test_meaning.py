"""A bundle means what the model means: what forward does with the latents, and which prior it is sampled from."""

import io

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn import functional

import vae_export
import vae_runtime
from vae_export.errors import ExportError
from vae_export.understand.adapt import adapt, declared
from vae_export.understand.adapted import run_module
from vae_export.understand.declaration import Declaration
from vae_export.understand.draws import Draws
from vae_export.understand.state import unchanged

torch.manual_seed(0)
X = torch.rand(6, 12)


class Plain(nn.Module):
    """A VAE as most are written."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body = nn.Sequential(nn.Linear(12, 16), nn.ReLU())
        self.fc_mu, self.fc_logvar, self.head = nn.Linear(16, 4), nn.Linear(16, 4), nn.Linear(4, 12)

    def encode(self, x):
        h = self.body(x)
        return self.fc_mu(h), self.fc_logvar(h)

    def decode(self, z):
        return torch.tanh(self.head(z))

    def reparameterize(self, mu, logvar):
        return mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)

    def between(self, z):
        return z

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(self.between(self.reparameterize(mu, logvar))), mu, logvar


def understood(model, **declaration):
    model = model.eval()
    with unchanged(model):
        by, known = declared(model)
        return adapt(model, X, Declaration(**declaration).over(known), source=by)


def prior_of(model, **declaration):
    return understood(model, **declaration).signature.latent.prior


# What forward does between encode and decode.


class Softmax(Plain):
    """A topic model: decode takes proportions."""

    def between(self, z):
        return torch.softmax(z, 1)


class Planar(Plain):
    """A flow after the sample."""

    def __init__(self):
        super().__init__()
        self.flow = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def between(self, z):
        for layer in self.flow:
            z = z + torch.tanh(layer(z))
        return z


class Faint(Plain):
    def reparameterize(self, mu, logvar):
        return mu + 0.1 * torch.randn_like(mu) * torch.exp(0.5 * logvar)


class Named(Planar):
    def encode(self, x):
        mu, logvar = super().encode(x)
        return {"mu": mu, "logvar": logvar}

    def forward(self, x):
        q = self.encode(x)
        return {"recon": self.decode(self.between(self.reparameterize(**q))), **q}


class Inside(Plain):
    """encode samples, and keeps the posterior to itself."""

    def encode(self, x):
        return self.reparameterize(*super().encode(x))

    def forward(self, x):
        return self.decode(self.encode(x))


class Hidden(Plain):
    """encode gives a hidden layer, and forward has the last layers of the encoder."""

    def encode(self, x):
        return self.body(x)

    def forward(self, x):
        h = self.encode(x)
        return self.decode(self.reparameterize(self.fc_mu(h), self.fc_logvar(h)))


class InTraining(Planar):
    def reparameterize(self, mu, logvar):
        return super().reparameterize(mu, logvar) if self.training else mu


class ForwardAlone(nn.Module):
    def __init__(self, draw):
        super().__init__()
        torch.manual_seed(2)
        self.first, self.last, self.draw = nn.Linear(12, 8), nn.Linear(4, 12), draw

    def forward(self, x):
        mu, log_std = self.first(x - x.mean(1, keepdim=True)).chunk(2, 1)
        z = self.draw(mu, log_std.exp())
        return z.pow(2).sum(), self.last(z).sigmoid()


DRAWS = {
    "sum": lambda mu, std: mu + std * torch.randn_like(std),
    "noise first": lambda mu, std: torch.randn_like(std).mul(std).add_(mu),
    "fused": lambda mu, std: torch.addcmul(mu, std, torch.randn(mu.shape)),
    "difference": lambda mu, std: mu - torch.randn(mu.size()) * std,
    "torch.normal": lambda mu, std: torch.normal(mu, std),
    "rsample": lambda mu, std: Normal(mu, std).rsample(),
    "sample": lambda mu, std: Independent(Normal(mu, std), 1).sample(),
}
CARRIED = {
    **{cls.__name__: cls for cls in (Plain, Softmax, Planar, Faint, Named, Inside, Hidden, InTraining)},
    **{f"forward alone: {name}": lambda draw=draw: ForwardAlone(draw) for name, draw in DRAWS.items()},
}


@pytest.mark.parametrize("name", CARRIED)
def test_the_components_do_what_forward_does(name):
    model = CARRIED[name]()
    adapted = understood(model)
    (latent,) = adapted.signature.latents
    assert latent.posterior.kind == "normal"
    x, eps = torch.rand(5, 12), torch.randn(5, *latent.shape)
    mean, _, std = run_module(adapted.modules["encoder"], [x])
    (own, *_) = run_module(adapted.modules["decoder"], [mean + std * eps])
    if name == "InTraining":
        model.training = True
    with Draws(lambda index, shape: -eps if "difference" in name else eps), torch.no_grad():
        output = model(x)
    answers = output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else (output,)
    expected = next(answer for answer in answers if answer.shape == x.shape)
    torch.testing.assert_close(own, expected, atol=2e-6, rtol=1e-5)


def test_a_bundle_of_the_halves_of_forward(tmp_path):
    model = Planar().eval()
    exported = vae_export.export(model, tmp_path / "bundle", example=X)
    assert any("halves of forward" in line for line in exported.recognised)
    vae = vae_runtime.load(exported.path)
    x = torch.rand(3, 12)
    with Draws.constant(0.0), torch.no_grad():
        expected = model(x)[0].numpy()
    np.testing.assert_allclose(vae.reconstruct(x.numpy()), expected, atol=1e-5)
    with pytest.raises(vae_runtime.InputError, match="forward changes the latents between the noise and decode"):
        vae.sample(1)


class Quantized(nn.Module):
    """A VQ-VAE with its codebook in forward."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.encoder, self.decoder = nn.Linear(12, 8), nn.Linear(8, 12)
        self.book = nn.Embedding(16, 4)

    def choose(self, rows):
        indices = torch.cdist(rows, self.book.weight).argmin(1)
        return self.book(indices)

    def forward(self, x):
        z = self.encoder(x)
        q = self.choose(z.reshape(-1, 4)).view_as(z)
        return self.decoder(z + (q - z).detach()), (q - z).pow(2).mean()


class OneHot(Quantized):
    def choose(self, rows):
        distances = rows.pow(2).sum(1, keepdim=True) + self.book.weight.pow(2).sum(1) - 2 * rows @ self.book.weight.T
        indices = torch.argmin(distances, dim=1).unsqueeze(1)
        return torch.zeros(len(indices), 16).scatter_(1, indices, 1) @ self.book.weight


class Least(Quantized):
    def choose(self, rows):
        return functional.embedding(torch.cdist(rows, self.book.weight).min(-1).indices, self.book.weight)


class Likest(nn.Module):
    """By a cosine, with positions along an axis of their own, and no submodule of a usual name."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(6)
        self.down, self.up, self.book = nn.Linear(12, 8), nn.Linear(8, 12), nn.Parameter(torch.randn(9, 4))

    def forward(self, x):
        z = functional.normalize(self.down(x).view(-1, 2, 4), dim=-1)
        return self.up(self.book[(z @ self.book.T).argmax(-1)].flatten(1))


@pytest.mark.parametrize("cls", [Quantized, OneHot, Least, Likest])
def test_codes_that_forward_chooses_are_found(cls):
    model = cls()
    adapted = understood(model)
    (latent,) = adapted.signature.latents
    assert (latent.shape, latent.posterior.kind, latent.prior.kind) == ((2,), "codes", "none")
    assert latent.posterior.codebook == (9 if cls is Likest else 16)
    x = torch.rand(5, 12)
    (codes,) = run_module(adapted.modules["encoder"], [x])
    (own, *_) = run_module(adapted.modules["decoder"], [codes])
    with torch.no_grad():
        output = model(x)
    torch.testing.assert_close(own, output[0] if isinstance(output, tuple) else output, atol=2e-6, rtol=1e-5)
    (other, *_) = run_module(adapted.modules["decoder"], [(codes + 1) % 9])
    assert not torch.allclose(own, other)


def test_a_bundle_of_codes_that_forward_chooses(tmp_path):
    model = Quantized().eval()
    vae = vae_runtime.load(vae_export.export(model, tmp_path / "bundle", example=X, formats=("onnx",)).path)
    x = torch.rand(3, 12)
    with torch.no_grad():
        expected = model(x)[0].numpy()
    np.testing.assert_allclose(vae.decode(vae.encode(x.numpy()).mode()), expected, atol=1e-5)


class Leaking(Quantized):
    """Its decoder sees the encoder's answer beside the codes."""

    def forward(self, x):
        z = self.encoder(x)
        return self.decoder(self.choose(z.reshape(-1, 4)).view_as(z) + 0.5 * z)


class Book(nn.Module):
    def __init__(self):
        super().__init__()
        self.codebook = nn.Embedding(16, 8)

    def forward(self, z):
        codes = torch.cdist(z, self.codebook.weight).argmin(1)
        return self.codebook(codes), codes


class LeakingModule(Quantized):
    """The same with a submodule that quantizes."""

    def __init__(self):
        super().__init__()
        self.quantizer = Book()

    def forward(self, x):
        z = self.encoder(x)
        return self.decoder(self.quantizer(z)[0] + 0.5 * z)


@pytest.mark.parametrize("cls", [Leaking, LeakingModule])
def test_codes_beside_something_else_are_refused(cls):
    # Rows that are alike hide nothing either.
    for x in (X, X[:1].repeat(6, 1)):
        model = cls().eval()
        with pytest.raises(ExportError, match="the observation, too, and not on the codes alone"), unchanged(model):
            adapt(model, x, Declaration())


class Denoising(Plain):
    def forward(self, x):
        return self.decode(self.encode(x + 0.1 * torch.randn_like(x))[0])


class Skipping(Plain):
    def forward(self, x):
        return self.decode(self.reparameterize(*self.encode(x))) + x


class Twice(Plain):
    def forward(self, x):
        return self.decode(self.reparameterize(*self.encode(x)) + 0.1 * torch.randn(len(x), 4)), x


class Weighted(Plain):
    """Importance weighting: several samples of each observation."""

    def encode(self, x):
        return self.body(x)

    def forward(self, x):
        h = self.body(x)
        mu, std = self.fc_mu(h)[:, None], self.fc_logvar(h)[:, None].exp()
        return self.decode(mu + std * torch.randn(len(x), 5, 4)).mean(1)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Denoising, "adds noise to the observation"),
        (Skipping, "depends on the observation, too"),
        (Twice, "draws normal noise 2 times"),
        (Weighted, r"noise of the shape \[6, 5, 4\] to a mean of the shape \[6, 1, 4\]"),
    ],
)
def test_a_forward_that_cannot_be_carried_is_refused(model, words):
    with pytest.raises(ExportError, match=words):
        understood(model())
    if model is not Weighted:
        # No declared meaning of the second tensor gets around it.
        with pytest.raises(ExportError, match=r"differs from decode|for no meaning"):
            understood(model(), posterior="logvar")


class Joined(nn.Module):
    """Two latents that a layer outside of decode joins; the posterior of the second takes a draw of the first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second = nn.Linear(12, 4), nn.Linear(12 + 2, 6)
        self.joint, self.decoder = nn.Linear(2 + 3, 8), nn.Linear(8, 12)
        self.prior_of_second = nn.Linear(2, 6)

    def reparameterize(self, mu, logvar):
        return mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)

    def encode(self, x):
        mu, logvar = self.first(x).chunk(2, 1)
        z = self.reparameterize(mu, logvar)
        return [*self.second(torch.cat([x, z], 1)).chunk(2, 1), mu, logvar, z]

    def decode(self, h):
        return torch.sigmoid(self.decoder(h))

    def joined(self, first, second):
        return self.decode(torch.tanh(self.joint(torch.cat([first, second], 1))))

    def forward(self, x):
        *_, first = encoded = self.encode(x)
        return self.joined(first, self.reparameterize(*encoded[:2])), *encoded

    def sample(self, n):
        first = torch.randn(n, 2).cuda()
        return self.joined(first, self.reparameterize(*self.prior_of_second(first).chunk(2, 1)))


def test_a_forward_with_several_latents_is_cut_at_each():
    model = Joined()
    adapted = understood(model)
    assert [latent.shape for latent in adapted.signature.latents] == [(2,), (3,)]
    assert any("two halves of forward" in line for line in adapted.recognised)
    assert any(line.startswith("checked: forward") for line in adapted.recognised)
    # The model's own sampler gives the second latent a prior that depends on the first.
    assert {latent.prior.kind for latent in adapted.signature.latents} == {"none"}
    assert "Joined.sample draws something else" in adapted.signature.latents[0].prior.reason
    eps, first, second = torch.randn(6, 2), torch.randn(6, 2), torch.randn(6, 3)
    given = {**adapted.examples, "eps_z1": eps, "z1": first, "z2": second}
    outputs = dict(
        zip(
            adapted.outputs("encoder"),
            run_module(adapted.modules["encoder"], adapted.given("encoder", given)),
            strict=True,
        )
    )
    mu, logvar = model.first(X).chunk(2, 1)
    torch.testing.assert_close(outputs["mu_z1"], mu)
    torch.testing.assert_close(outputs["std_z1"], torch.exp(0.5 * logvar))
    mu, logvar = model.second(torch.cat([X, mu + eps * torch.exp(0.5 * logvar)], 1)).chunk(2, 1)
    torch.testing.assert_close(outputs["mu_z2"], mu)
    torch.testing.assert_close(outputs["std_z2"], torch.exp(0.5 * logvar))
    (mean,) = run_module(adapted.modules["decoder"], adapted.given("decoder", given))
    torch.testing.assert_close(mean, model.joined(first, second))


class NoisyJoined(Joined):
    """The observation gets noise of its own, which is no latent."""

    def forward(self, x):
        mean, *rest = super().forward(x)
        return mean + 0.1 * torch.randn_like(mean), *rest


class ChainedJoined(Joined):
    """The decoder takes the second latent alone: the first has no use once it is drawn."""

    def joined(self, first, second):
        return super().joined(0 * first, second)


@pytest.mark.parametrize("cls", [NoisyJoined, ChainedJoined])
def test_a_draw_that_the_reconstruction_does_not_need_is_no_latent(cls):
    with pytest.raises(ExportError, match="does not depend on draw 1 where the others are given"):
        understood(cls())


class TopDown(nn.Module):
    """A ladder: each level has a posterior, and a prior that depends on the levels above."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.top = nn.Linear(12, 8), nn.Parameter(torch.randn(1, 8))
        self.posteriors = nn.ModuleList([nn.Linear(16, 4), nn.Linear(16, 6)])
        self.priors = nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 6)])
        self.joints, self.out = nn.ModuleList([nn.Linear(2, 8), nn.Linear(3, 8)]), nn.Linear(8, 12)

    def levels(self, n, x=None):
        h = self.top.expand(n, -1)
        for posterior, prior, joint in zip(self.posteriors, self.priors, self.joints, strict=True):
            parameters = prior(h) if x is None else posterior(torch.cat([h, self.body(x)], 1))
            mu, log_std = parameters.chunk(2, 1)
            h = torch.tanh(h + joint(mu + log_std.exp() * torch.randn_like(mu)))
        return self.out(h)

    def forward(self, x):
        return self.levels(len(x), x)


class TopDownSampled(TopDown):
    def forward_uncond_samples(self, n_batch):
        return self.levels(n_batch)


@pytest.mark.parametrize(
    ("cls", "words"),
    [(TopDown, "depends on a draw of another"), (TopDownSampled, "forward_uncond_samples draws something else")],
)
def test_levels_that_depend_on_each_other_have_no_standard_normal(cls, words):
    adapted = understood(cls())
    assert [latent.shape for latent in adapted.signature.latents] == [(2,), (3,)]
    for latent in adapted.signature.latents:
        assert latent.prior.kind == "none"
        assert words in latent.prior.reason


class Flattened(nn.Module):
    """encode gives the vectors, a loss and the codes of all observations in one row, as that of VQGAN does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.body, self.out, self.codebook = nn.Linear(12, 8), nn.Linear(8, 12), nn.Embedding(5, 2)

    def encode(self, x):
        h = self.body(x).reshape(-1, 2)
        indices = torch.cdist(h, self.codebook.weight).argmin(1)
        q = self.codebook(indices).view(len(x), 8)
        return q, ((q - self.body(x)) ** 2).mean(), (None, None, indices)

    def decode(self, q):
        return self.out(q)

    def forward(self, x):
        q, loss, _ = self.encode(x)
        return self.decode(q), loss


def test_codes_of_all_observations_in_one_row_are_divided():
    model = Flattened()
    adapted = understood(model)
    (latent,) = adapted.signature.latents
    assert (latent.posterior.kind, latent.posterior.codebook, latent.shape) == ("codes", 5, (4,))
    (codes,) = run_module(adapted.modules["encoder"], [X])
    assert torch.equal(codes.flatten(), model.encode(X)[2][2])


class Repeating(Plain):
    """No decode that takes one latent: each observation has several, which a layer joins."""

    decode = None

    def __init__(self):
        super().__init__()
        self.all = nn.Linear(12, 12)

    def forward(self, x):
        mu, logvar = (tensor[:, None].expand(-1, 3, -1) for tensor in self.encode(x))
        return self.all(self.reparameterize(mu, logvar).flatten(1))


def test_several_latents_of_each_observation_are_no_larger_latent():
    with pytest.raises(ExportError, match="several latents of each observation, along axis 1"):
        understood(Repeating())


class Direct(Plain):
    """forward decodes by the layer itself, so that its answer alone shows the latents."""

    def forward(self, x):
        mu, logvar = self.encode(x)
        return torch.tanh(self.head(self.reparameterize(mu, logvar))), mu, logvar


def test_a_decode_that_hardly_heeds_the_latent_shows_the_second_tensor_too():
    for cls, factor in ((Plain, 1e-7), (Direct, 1e-3)):
        model = cls()
        with torch.no_grad():
            model.head.weight.mul_(factor)
            model.fc_logvar.weight.mul_(0.1)
        assert any("the second tensor is the logvar" in line for line in understood(model).recognised)
    with torch.no_grad():
        model.head.weight.mul_(1e-4)
    with pytest.raises(ExportError, match="does not show what encode's second tensor is"):
        understood(model)


def test_a_forward_that_returns_a_loss_shows_what_it_decodes():
    class Loss(Plain):
        def forward(self, x):
            return ((super().forward(x)[0] - x) ** 2).mean()

    class Halved(Loss):
        def between(self, z):
            return z / 2

    assert any("the second tensor is the logvar" in line for line in understood(Loss()).recognised)
    with pytest.raises(ExportError, match="for no meaning"):
        understood(Halved())


def test_a_change_of_the_observation_leaves_the_prior_alone():
    class Scaled(Plain):
        def forward(self, x):
            mu, logvar = self.encode((x - 0.5) / 0.3)
            return self.decode(self.reparameterize(mu, logvar)) * 0.3 + 0.5

    adapted = understood(Scaled())
    assert any("two halves of forward" in line for line in adapted.recognised)
    assert (adapted.signature.latent.prior.kind, adapted.signature.latent.prior.assumed) == ("normal", True)


def test_stated_functions_win_and_the_difference_is_noted():
    model = Softmax()
    adapted = understood(model, decode=lambda z: model.decode(z), posterior="logvar")
    assert any("the stated functions win: forward: its reconstruction differs" in line for line in adapted.recognised)
    alike = understood(model, decode=lambda z: model.decode(torch.softmax(z, 1)), posterior="logvar")
    assert not any("differs" in line for line in alike.recognised)


# The prior.


class Sampling(Plain):
    def noise(self, n):
        return torch.randn(n, 4)

    def sample(self, num_samples, current_device="cpu"):
        return self.decode(self.noise(num_samples).to(current_device))


class Learned(Sampling):
    def __init__(self):
        super().__init__()
        self.prior_mu, self.prior_logvar = nn.Parameter(torch.arange(4.0)), nn.Parameter(torch.linspace(-2, 0, 4))

    def noise(self, n):
        return self.prior_mu + torch.randn(n, 4) * torch.exp(0.5 * self.prior_logvar)


class Vamp(Sampling):
    def __init__(self):
        super().__init__()
        self.pseudo = nn.Parameter(torch.rand(5, 12))

    def noise(self, n):
        mu, logvar = self.encode(torch.sigmoid(self.pseudo))
        chosen = torch.randint(len(mu), (n,))
        return self.reparameterize(mu[chosen], logvar[chosen])


class Mixture(Sampling):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.weights, self.means = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3, 4))
        self.stds = nn.Parameter(torch.rand(3, 4))

    def noise(self, n):
        parts = Independent(Normal(self.means, self.stds), 1)
        return MixtureSameFamily(Categorical(logits=self.weights), parts).sample((n,))


class Chosen(Mixture):
    """The same by torch.multinomial."""

    def noise(self, n):
        chosen = torch.multinomial(torch.softmax(self.weights, 0), n, replacement=True)
        return self.means[chosen] + self.stds[chosen] * torch.randn(n, 4)


def test_a_standard_normal_is_found_in_the_models_own_sampler_or_assumed():
    found = prior_of(Sampling())
    assert (found.kind, found.assumed) == ("normal", False)
    assumed = understood(Plain())
    assert (assumed.signature.latent.prior.kind, assumed.signature.latent.prior.assumed) == ("normal", True)
    assert any("prior: normal, assumed" in line for line in assumed.recognised)
    stated = prior_of(Plain(), prior="normal")
    assert (stated.kind, stated.assumed) == ("normal", False)


class Renamed(nn.Module):
    """A model without encode and decode, whose sample decodes a map of one normal draw."""

    def __init__(self, mapped):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.last, self.mapped = nn.Linear(12, 6), nn.Linear(3, 12), mapped

    def blow_up(self, z):
        return torch.sigmoid(self.last(z / 0.37))

    def forward(self, x):
        log_std, mean = self.first(x).chunk(2, -1)
        return self.blow_up(mean + log_std.exp() * torch.randn_like(mean)), mean, log_std

    def sample(self, n):
        return self.blow_up(self.mapped(n))


MEAN, FACTOR = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([[1.0, 0.0, 0.0], [0.5, 2.0, 0.0], [0.0, -1.0, 0.5]])


@pytest.mark.parametrize(
    ("mapped", "mean", "covariance"),
    [
        (lambda n: torch.randn(n, 3) * 0.37, torch.zeros(3), 0.37**2 * torch.eye(3)),
        (lambda n: Normal(MEAN, FACTOR[1] + 1).sample((n,)), MEAN, torch.diag((FACTOR[1] + 1) ** 2)),
        (lambda n: MEAN + torch.randn(n, 3) @ FACTOR.T, MEAN, FACTOR @ FACTOR.T),
    ],
    ids=["a factor", "a distribution", "a matrix"],
)
def test_a_sampler_beside_a_cut_forward_shows_a_normal_of_its_own(mapped, mean, covariance):
    _, means, factors = mixture_of(Renamed(mapped))
    factor = factors[0] if factors.ndim == 3 else np.diag(factors[0])
    np.testing.assert_allclose(means[0], mean, atol=1e-6)
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=1e-5)


def test_a_sampler_beside_a_cut_forward_may_draw_anything_else():
    assert prior_of(Renamed(lambda n: torch.randn(n, 3))).kind == "normal"
    assert prior_of(Renamed(lambda n: torch.tanh(torch.randn(n, 3)))).kind == "none"

    class Rounding(Renamed):
        def sample(self, n):
            return super().sample(n).round(decimals=1)

    assert prior_of(Rounding(lambda n: torch.randn(n, 3) * 0.37)).kind == "none"


class Samples(Plain):
    """forward draws several latents of each observation, along this axis."""

    def __init__(self, axis, factor=1.0):
        super().__init__()
        self.axis, self.factor = axis, factor

    def forward(self, x):
        mu, logvar = (tensor.unsqueeze(self.axis) for tensor in self.encode(x))
        shape = [*mu.shape]
        shape[self.axis] = 3
        z = mu + self.factor * torch.randn(shape) * torch.exp(0.5 * logvar)
        return self.decode(z), z, mu, logvar


class SamplesInDecode(Plain):
    """The same, where decode itself takes latents [batch, samples, latent]."""

    def decode(self, z):
        rows, _, latent = z.shape
        return super().decode(z.reshape(-1, latent)).view(rows, -1, 12)

    def forward(self, x):
        mu, logvar = (tensor.unsqueeze(1).expand(-1, 3, -1) for tensor in self.encode(x))
        return self.decode(self.reparameterize(mu, logvar)), mu, logvar


@pytest.mark.parametrize("axis", [0, 1])
def test_forward_may_draw_several_latents_of_each_observation(axis):
    adapted = understood(Samples(axis))
    assert adapted.signature.latent.shape == (4,)
    assert adapted.signature.observation.shape == (12,)
    assert any("the second tensor is the logvar" in line for line in adapted.recognised)
    assert any(line.startswith("checked: forward") for line in adapted.recognised)


class SamplesOfSamples(Plain):
    """decode takes latents [batch, estimates, samples, latent], as that of MIWAE does."""

    def decode(self, z):
        rows, estimates, samples, latent = z.shape
        return super().decode(z.reshape(-1, latent)).view(rows, estimates, samples, 12)

    def forward(self, x):
        mu, logvar = (tensor[:, None, None].expand(-1, 2, 3, -1) for tensor in self.encode(x))
        return self.decode(self.reparameterize(mu, logvar)), mu, logvar

    def sample(self, n):
        return self.decode(torch.randn(n, 1, 1, 4)).squeeze()


@pytest.mark.parametrize(("cls", "axes"), [(SamplesInDecode, (1,)), (SamplesOfSamples, (1, 2))])
def test_a_decode_of_several_latents_takes_one(cls, axes):
    model = cls()
    adapted = understood(model)
    assert adapted.signature.latent.shape == (4,)
    assert any(line.startswith("checked: forward") for line in adapted.recognised)
    assert any(f"along axis {' and '.join(map(str, axes))}" in line for line in adapted.recognised)
    assert adapted.signature.latent.prior.assumed == (cls is SamplesInDecode)
    z = torch.randn(5, 4)
    (mean,) = run_module(adapted.modules["decoder"], [z])
    torch.testing.assert_close(mean, Plain.decode(model, z))


def test_a_decode_that_joins_its_samples_is_refused():
    class Joined(SamplesInDecode):
        def decode(self, z):
            return super().decode(z) - super().decode(z).mean(1, keepdim=True)

    with pytest.raises(ExportError, match=r"differs from decode|changes the latents"):
        understood(Joined())


class Mixing(Samples):
    """The samples of an observation are not its own: each is the mean of all."""

    def forward(self, x):
        _, z, mu, logvar = super().forward(x)
        return self.decode(z.mean(self.axis, keepdim=True).expand_as(z)), mu, logvar


@pytest.mark.parametrize("axis", [0, 1])
def test_an_average_over_several_latents_is_seen(axis):
    with pytest.raises(ExportError, match="changes the latents"):
        understood(Mixing(axis))


@pytest.mark.parametrize("axis", [0, 1])
def test_several_latents_with_less_noise_are_seen(axis):
    for declaration in ({}, {"posterior": "logvar"}):
        with pytest.raises(ExportError, match=r"changes the latents or|cannot be cut"):
            understood(Samples(axis, factor=0.1), **declaration)


class Encoding(Plain):
    """A model that is never called as a whole."""

    forward = nn.Module.forward


def test_the_record_says_which_of_the_models_own_functions_were_compared():
    def checked(model, **declaration):
        lines = understood(model, **declaration).recognised
        return [line.removeprefix("checked: ").split(",")[0] for line in lines if line.startswith("checked: ")]

    assert checked(Sampling()) == ["forward", "Sampling.sample"]
    assert checked(Plain()) == ["forward"]
    assert checked(Encoding(), posterior="logvar") == []
    # Functions that do something else than forward win, and nothing was compared.
    model = Plain()
    assert checked(model, encode=lambda x: x[:, :4], decode=model.decode, posterior="none") == []


def mixture_of(model):
    adapted = understood(model)
    assert adapted.signature.latent.prior.kind == "mixture"
    with np.load(io.BytesIO(adapted.prior_file)) as arrays:
        return [arrays[f"z/{name}"] for name in ("weights", "means", "factors")]


@torch.no_grad()
def test_learned_priors_are_carried_exactly():
    model = Learned()
    weights, means, factors = mixture_of(model)
    np.testing.assert_allclose(weights, [1.0])
    np.testing.assert_allclose(means, model.prior_mu[None].numpy())
    np.testing.assert_allclose(factors, torch.exp(0.5 * model.prior_logvar)[None].numpy(), rtol=1e-5)

    model = Vamp()
    weights, means, factors = mixture_of(model)
    mu, logvar = model.encode(torch.sigmoid(model.pseudo))
    np.testing.assert_allclose(weights, np.full(5, 0.2), rtol=1e-6)
    np.testing.assert_allclose(means, mu.numpy(), atol=1e-6)
    np.testing.assert_allclose(factors, torch.exp(0.5 * logvar).numpy(), atol=1e-5)

    for cls in (Mixture, Chosen):
        model = cls()
        weights, means, factors = mixture_of(model)
        np.testing.assert_allclose(weights, torch.softmax(model.weights, 0).numpy(), rtol=1e-5)
        np.testing.assert_allclose(means, model.means.numpy(), atol=1e-6)
        np.testing.assert_allclose(factors, model.stds.numpy(), atol=1e-5)


class Correlated(Sampling):
    def noise(self, n):
        return 1.0 + torch.randn(n, 4) @ torch.tril(torch.ones(4, 4))


@torch.no_grad()
def test_a_full_covariance_is_carried():
    weights, means, factors = mixture_of(Correlated())
    matrix = np.tril(np.ones((4, 4)))
    np.testing.assert_allclose(weights, [1.0])
    np.testing.assert_allclose(means, np.ones((1, 4)), atol=1e-6)
    np.testing.assert_allclose(factors[0] @ factors[0].T, matrix.T @ matrix, atol=1e-5)
    assert np.array_equal(factors[0], np.tril(factors[0]))


class Stated(Plain):
    """Its prior is a distribution, an attribute or a method."""

    def __init__(self, prior):
        super().__init__()
        self.prior = prior


class Whole(Plain):
    def sample_z(self, n):
        return 2 + torch.randn(n, 4)


class Single(Plain):
    """It samples one at a time, and takes no number."""

    def __init__(self, mean):
        super().__init__()
        self.mean = mean

    def sample(self):
        return self.decode(torch.randn(1, 4) + self.mean)


class Loop(Sampling):
    def sample(self, num_samples):
        return torch.cat([self.decode(torch.randn(1, 4) * 0.5) for _ in range(num_samples)])


class Direction(Sampling):
    def noise(self, n):
        z = torch.randn(n, 4)
        return z / z.norm(dim=1, keepdim=True)


def test_other_ways_to_show_a_prior():
    standard = Normal(torch.zeros(4), torch.ones(4))
    for model in (Stated(standard), Stated(lambda: None), Single(0.0)):
        assert prior_of(model).kind == "normal"
    assert not prior_of(Stated(Independent(standard, 1))).assumed
    assert prior_of(Stated(lambda: None)).assumed
    weights, means, factors = mixture_of(Stated(Normal(torch.full((4,), 3.0), torch.full((4,), 0.5))))
    np.testing.assert_allclose((means, factors), (np.full((1, 4), 3.0), np.full((1, 4), 0.5)), rtol=1e-6)
    for model, mean, std in ((Whole(), 2.0, 1.0), (Single(1.0), 1.0, 1.0), (Loop(), 0.0, 0.5)):
        weights, means, factors = mixture_of(model)
        np.testing.assert_allclose(weights, [1.0])
        np.testing.assert_allclose((means[0], factors[0]), (np.full(4, mean), np.full(4, std)), atol=1e-6)
    assert prior_of(Direction()).kind == "sphere"


def test_a_prior_that_depends_on_conditions_is_none():
    class Labelled(Sampling):
        def __init__(self):
            super().__init__()
            self.means = nn.Embedding(3, 4)

        def decode(self, z, y):
            return super().decode(z) + y[:, None].float()

        def forward(self, x, y):
            return self.decode(self.reparameterize(*self.encode(x)), y)

        def sample(self, n, y):
            return self.decode(self.means(y) + torch.randn(n, 4), y)

    y = torch.tensor([0, 1, 2, 0, 1, 2])
    model = Labelled().eval()
    with unchanged(model):
        adapted = adapt(model, X, Declaration(), conditions={"y": y})
    assert "the same for every sample" in adapted.signature.latent.prior.reason
    model.means.weight.data.zero_()
    with unchanged(model):
        adapted = adapt(model, X, Declaration(), conditions={"y": y})
    assert adapted.signature.latent.prior.kind == "normal"


def test_a_sampler_finds_its_conditions_among_its_keywords():
    class Keyed(Sampling):
        def __init__(self):
            super().__init__()
            self.joint = nn.Linear(4 + 3, 4)

        def decode(self, z, **others):
            return super().decode(self.joint(torch.cat([z, others["labels"]], 1)))

        def forward(self, x, **others):
            return self.decode(self.reparameterize(*self.encode(x)), **others)

        def sample(self, num_samples, device, **others):
            return self.decode(torch.randn(num_samples, 4).to(device), **others)

    model = Keyed().eval()
    with unchanged(model):
        adapted = adapt(model, X, Declaration(), conditions={"labels": torch.eye(3)[[0, 1, 2, 0, 1, 2]]})
    prior = adapted.signature.latent.prior
    assert (prior.kind, prior.assumed) == ("normal", False)


def test_a_learned_prior_that_the_sampler_leaves_out_is_seen():
    class Pseudo(Sampling):
        def __init__(self):
            super().__init__()
            self.embed_pseudo = nn.Linear(5, 12)

        def sample(self, n):
            return self.decode(torch.randn(n, 4).cuda())

    prior = prior_of(Pseudo())
    assert prior.kind == "none"
    assert "embed_pseudo.weight" in prior.reason
    assert prior_of(Pseudo(), prior="normal").kind == "normal"
    model = Pseudo()
    del model.embed_pseudo
    assert (prior_of(model).kind, prior_of(model).assumed) == ("normal", False)


def test_a_standard_normal_in_buffers_is_no_evidence_against_one():
    class Buffers(Plain):
        def __init__(self, mean):
            super().__init__()
            self.register_buffer("prior_mean", torch.full((4,), mean))
            self.register_buffer("prior_std", torch.ones(4))

    assert prior_of(Buffers(0.0)).kind == "normal"
    assert prior_of(Buffers(0.5)).kind == "none"


def test_a_factor_on_the_noise_of_training_mode_counts():
    class Faint(Named):
        def between(self, z):
            return z

        def reparameterize(self, mu, logvar):
            return mu + 0.1 * torch.randn_like(mu) * torch.exp(0.5 * logvar) if self.training else mu

    model = Faint()
    adapted = understood(model)
    _, _, std = run_module(adapted.modules["encoder"], [X])
    torch.testing.assert_close(std, 0.1 * torch.exp(0.5 * model.encode(X)["logvar"]))


def test_a_bundle_with_a_learned_prior_samples_it(tmp_path):
    model = Vamp().eval()
    vae = vae_runtime.load(vae_export.export(model, tmp_path / "bundle", example=X, formats=("onnx",)).path)
    assert vae.manifest.latent.prior.components == 5
    z = vae.prior(4000, seed=0)
    with torch.no_grad():
        own = model.noise(4000).numpy()
    np.testing.assert_allclose(z.mean(0), own.mean(0), atol=0.1)
    np.testing.assert_allclose(z.std(0), own.std(0), atol=0.1)


class Scaled(Plain):
    def __init__(self):
        super().__init__()
        self.config = {"scaling_factor": 0.5, "latents_mean": [1.0, 2.0, 3.0, 4.0], "latents_std": [1.0, 2.0, 4.0, 8.0]}


class Shifted(Plain):
    class config:
        scaling_factor, shift_factor = 0.25, 0.125


class Quantizing(Plain):
    def __init__(self):
        super().__init__()
        self.quant_conv, self.post_quant_conv = nn.Linear(8, 8), nn.Linear(4, 4)

    def encode(self, x):
        return self.quant_conv(torch.cat(super().encode(x), 1)).chunk(2, 1)

    def decode(self, z):
        return super().decode(self.post_quant_conv(z))


class Tiled(Plain):
    def enable_tiling(self):
        pass


class Unread(Plain):
    """It has a prior, and nothing that samples from it."""

    def __init__(self):
        super().__init__()
        self.prior = nn.Linear(3, 8)


class Pseudo(Plain):
    def __init__(self):
        super().__init__()
        self.inputs = nn.Parameter(torch.rand(7, 12))


class Cubed(Sampling):
    def noise(self, n):
        return torch.randn(n, 4) ** 3


class Uniform(Sampling):
    def noise(self, n):
        return torch.rand(n, 4)


class Clipped(Sampling):
    def noise(self, n):
        return torch.randn(n, 4).clamp(-1.5, 1.5)


class Conditional(Plain):
    """Its prior is a network of the label."""

    def __init__(self):
        super().__init__()
        self.prior = nn.Linear(3, 8)


class Flowing(Planar):
    """The prior is that of the latents behind the flow."""

    def sample(self, n):
        return self.decode(torch.randn(n, 4))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Scaled, "another model supplies the latents, as scaling_factor"),
        (Shifted, "as scaling_factor"),
        (Quantizing, "as quant_conv"),
        (Tiled, "as enable_tiling"),
        (Unread, "prior.weight"),
        (Pseudo, "reads inputs, which may be a learned prior"),
        (Cubed, "Cubed.sample draws neither a normal"),
        (Uniform, "Uniform.sample draws with rand"),
        (Clipped, "Clipped.sample draws neither a normal"),
        (Conditional, "prior.weight"),
        (Flowing, "Flowing.sample draws something else"),
    ],
)
def test_a_model_that_shows_no_standard_normal_has_no_prior(model, words):
    adapted = understood(model())
    prior = adapted.signature.latent.prior
    assert prior.kind == "none"
    assert words in prior.reason
    assert any('prior="normal"' in line for line in adapted.recognised)
    # What is declared is taken as it is.
    assert prior_of(model(), prior="normal").kind == "normal"


def test_scale_and_shift_of_a_configuration_are_carried():
    latent = understood(Scaled()).signature.latent
    assert latent.scale == (0.5, 0.25, 0.125, 0.0625)
    assert latent.shift == (1.0, 2.0, 3.0, 4.0)
    latent = understood(Shifted()).signature.latent
    assert (latent.scale, latent.shift) == (0.25, 0.125)
    assert understood(Shifted(), latent_scale=3.0).signature.latent.scale == 3.0


def test_weights_of_the_loss_are_no_prior():
    class Loss(Plain):
        def __init__(self):
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(1))
            self.classifier = nn.Linear(16, 3)

    assert prior_of(Loss()).kind == "normal"


def test_a_sampler_that_is_none_is_passed_over():
    class Reconstructing(Plain):
        def generate(self, x):
            return self.forward(x)[0]

        def sample(self, n):
            return torch.zeros(n, 12)

    assert prior_of(Reconstructing()).assumed


# Latents that are not normal.


class Classes(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.last = nn.Linear(12, 15), nn.Linear(15, 12)

    def encode(self, x):
        return self.first(x).view(-1, 3, 5)

    def draw(self, logits):
        return functional.gumbel_softmax(logits, tau=0.5)

    def decode(self, z):
        return self.last(z.reshape(-1, 15))

    def forward(self, x):
        q = self.encode(x)
        return self.decode(self.draw(q)), q


OTHER = {
    "gumbel_softmax": lambda q: functional.gumbel_softmax(q, hard=True),
    "rand_like": lambda q: functional.softmax(q - torch.log(-torch.log(torch.rand_like(q) + 1e-7) + 1e-7), -1),
    "multinomial": lambda q: torch.distributions.OneHotCategorical(logits=q).sample(),
    "bernoulli": lambda q: torch.bernoulli(torch.sigmoid(q)),
    "relaxed": lambda q: torch.distributions.RelaxedBernoulli(torch.tensor(0.5), logits=q).rsample(),
    "dirichlet": lambda q: torch.distributions.Dirichlet(q.exp()).rsample(),
    "gamma": lambda q: torch.distributions.Gamma(q.exp(), torch.ones(())).rsample(),
    "exponential": lambda q: q + torch.empty_like(q).exponential_(),
    "rand": lambda q: (torch.rand(q.shape) < torch.sigmoid(q)).float(),
    "uniform_": lambda q: q + torch.empty_like(q).uniform_(),
    "bernoulli_": lambda q: torch.empty_like(q).bernoulli_(torch.sigmoid(q)),
    "poisson": lambda q: torch.poisson(q.exp()),
    "binomial": lambda q: torch.binomial(torch.full_like(q, 3.0), torch.sigmoid(q)),
    "geometric_": lambda q: q + torch.empty_like(q).geometric_(0.5),
    "cauchy_": lambda q: q + torch.empty_like(q).cauchy_(),
    "log_normal_": lambda q: q + torch.empty_like(q).log_normal_(),
    "randint": lambda q: q + torch.randint(3, q.shape),
    "randint_like": lambda q: q + torch.randint_like(q, 3),
    "random_": lambda q: q + torch.empty_like(q).random_(3),
    "randperm": lambda q: q + torch.randperm(5),
}


@pytest.mark.parametrize("name", OTHER)
def test_latents_that_are_not_normal_are_refused(name):
    model = Classes()
    model.draw = OTHER[name]
    for posterior in (None, "none"):
        with pytest.raises(ExportError, match="which are not normal") as refusal:
            understood(model, posterior=posterior)
        assert "posterior=" not in str(refusal.value)


def test_classes_beside_a_normal_latent_are_the_reason():
    class Both(Plain):
        """mean and log-variance of a normal latent, and the logits of a relaxed class."""

        def __init__(self):
            super().__init__()
            self.logits, self.head = nn.Linear(16, 3), nn.Linear(4 + 3, 12)

        def encode(self, x):
            return *super().encode(x), self.logits(self.body(x))

        def forward(self, x):
            mu, logvar, logits = self.encode(x)
            gumbel = -torch.log(-torch.log(torch.rand_like(logits) + 1e-7) + 1e-7)
            soft = torch.softmax((logits + gumbel) / 0.5, 1)
            return self.decode(torch.cat([self.reparameterize(mu, logvar), soft], 1)), mu, logvar, logits

    with pytest.raises(ExportError, match="forward: draws latents with rand_like, which are not normal"):
        understood(Both())


def test_a_distribution_that_is_not_normal_is_refused():
    class Given(Classes):
        def encode(self, x):
            return torch.distributions.OneHotCategorical(logits=super().encode(x))

        def forward(self, x):
            return self.decode(self.encode(x).sample())

    with pytest.raises(
        ExportError, match="expected a normal posterior, got OneHotCategorical; pass encode="
    ) as refusal:
        understood(Given())
    assert "posterior=" not in str(refusal.value)


def test_a_sampler_of_classes_shows_what_a_failing_forward_does_not():
    class Listed(Classes):
        def encode(self, x):
            return [super().encode(x)]

        def sample(self, n):
            return self.decode(functional.one_hot(torch.randint(5, (n, 3)), 5).float())

    with pytest.raises(ExportError, match="sample: draws classes as latents"):
        understood(Listed())


def test_classes_are_carried_as_codes_by_stated_functions():
    model = Classes()
    adapted = understood(
        model,
        encode=lambda x: model.encode(x).argmax(-1),
        decode=lambda codes: model.decode(functional.one_hot(codes, 5).float()),
        codebook=5,
    )
    assert adapted.signature.latent.posterior.kind == "codes"


@pytest.mark.parametrize(("rows", "codes"), [(3, 4), (3, 40), (40, 4)])
def test_distances_are_pytorch_s(rows, codes):
    a, b = torch.randn(2, rows, 6), torch.randn(codes, 6)
    with Draws.constant(0.0):
        own = torch.cdist(a, b)
        other = torch.cdist(a, b, p=1.0)
    torch.testing.assert_close(own, torch.cdist(a, b), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(other, torch.cdist(a, b, p=1.0))


# What a comparison by one number, one shape or one observation would miss.


class Correlating(Plain):
    def reparameterize(self, mu, logvar):
        return mu + torch.exp(0.5 * logvar) * (torch.randn_like(mu) @ torch.tril(torch.ones(4, 4)))


class Averaging(Plain):
    def reparameterize(self, mu, logvar):
        return (mu + torch.randn(5, *mu.shape) * torch.exp(0.5 * logvar)).mean(0)


class Sharing(Plain):
    def reparameterize(self, mu, logvar):
        return mu + torch.exp(0.5 * logvar) * torch.randn(len(mu), 1)


class Cumulative(Plain):
    def encode(self, x):
        mu, logvar = super().encode(x)
        return Normal(mu, torch.exp(0.5 * logvar))

    def forward(self, x):
        q = self.encode(x)
        return self.decode(q.loc + q.scale * torch.randn_like(q.loc).cumsum(1))


@pytest.mark.parametrize("cls", [Correlating, Averaging, Sharing, Cumulative])
def test_noise_that_is_not_each_number_s_own_is_no_diagonal_normal(cls):
    with pytest.raises(ExportError, match="forward"):
        understood(cls())


class Viewed(Softmax):
    """Its answer has another shape than decode's."""

    def encode(self, x):
        mu, logvar = super().encode(x)
        return Normal(mu, torch.exp(0.5 * logvar))

    def forward(self, x):
        return self.decode(self.between(self.encode(x).rsample())).view(-1, 3, 4)


class Losing(Plain):
    """It returns its loss alone."""

    def encode(self, x):
        mu, logvar = super().encode(x)
        return {"mu": mu, "logvar": logvar}

    def forward(self, x):
        return (self.decode(self.between(self.reparameterize(**self.encode(x)))) - x).pow(2).mean()


class LosingSoftmax(Losing):
    def between(self, z):
        return torch.softmax(z, 1)


class LosingClasses(Losing):
    def encode(self, x):
        return self.fc_mu(self.body(x))

    def forward(self, x):
        return (self.decode(functional.gumbel_softmax(self.encode(x))) - x).pow(2).mean()


def test_what_forward_decodes_counts_where_it_returns_something_else():
    assert understood(Losing()).signature.latent.posterior.kind == "normal"
    viewed = understood(Viewed())
    assert any("halves of forward" in line for line in viewed.recognised)
    for cls in (LosingSoftmax, LosingClasses):
        with pytest.raises(ExportError, match="forward"):
            understood(cls())


class Apart(nn.Module):
    """Its forward encodes, and the VAE is in the training step."""

    def __init__(self):
        super().__init__()
        self.encoder, self.fc_mu, self.fc_var = nn.Linear(12, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.decoder_input, self.decoder = nn.Linear(4, 16), nn.Linear(16, 12)

    def forward(self, x):
        return self.encoder(x)


def test_layers_of_a_posterior_that_nothing_reads_are_not_left_out():
    with pytest.raises(ExportError, match=r"neither encode nor decode reads fc_mu.weight"):
        understood(Apart())


class TrainingEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.mu, self.log_std = nn.Linear(12, 4), nn.Linear(12, 4)

    def forward(self, x):
        mu = self.mu(x)
        return mu + self.log_std(x).exp() * torch.randn_like(mu) if self.training else mu


class SamplingInside(nn.Module):
    """A submodule with weights samples in training mode alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.encoder, self.decoder = TrainingEncoder(), nn.Linear(4, 12)

    def forward(self, x):
        return self.decoder(self.encoder(x))


def test_a_submodule_that_samples_in_training_mode_has_a_posterior():
    adapted = understood(SamplingInside())
    assert adapted.signature.latent.posterior.kind == "normal"


class LaplaceInTraining(Plain):
    def encode(self, x):
        mu, logvar = super().encode(x)
        return {"loc": mu, "scale": logvar.exp()}

    def forward(self, x):
        q = self.encode(x)
        z = torch.distributions.Laplace(q["loc"], q["scale"]).rsample() if self.training else q["loc"]
        return self.decode(z)


class LaplaceAlways(Plain):
    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(torch.distributions.Laplace(mu, logvar.exp()).rsample())


@pytest.mark.parametrize("cls", [LaplaceInTraining, LaplaceAlways])
def test_other_noise_is_seen_in_either_mode(cls):
    for posterior in (None, "std"):
        with pytest.raises(ExportError, match="not normal") as refusal:
            understood(cls(), posterior=posterior)
        assert "posterior=" not in str(refusal.value)


class FlowAlone(nn.Module):
    """A flow, no encode, and a decode of the latents behind it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(8)
        self.first, self.flow, self.last = nn.Linear(12, 8), nn.Linear(4, 4), nn.Linear(4, 12)

    def decode(self, z):
        return self.last(z)

    def forward(self, x):
        mu, logvar = self.first(x).chunk(2, 1)
        z = mu + torch.randn_like(mu) * logvar.exp()
        return self.decode(z + torch.tanh(self.flow(z)))


class FlowInside(FlowAlone):
    decode = None

    def forward(self, x):
        mu, logvar = self.first(x).chunk(2, 1)
        z = mu + torch.randn_like(mu) * logvar.exp()
        return self.last(z + torch.tanh(self.flow(z)))


@pytest.mark.parametrize("cls", [FlowAlone, FlowInside])
def test_a_flow_behind_the_cut_leaves_the_prior_open(cls):
    assert "before or after" in prior_of(cls()).reason


class Logits(Sampling):
    def decode(self, z):
        return self.head(z)

    def sample(self, num_samples):
        return torch.sigmoid(self.decode(self.noise(num_samples)))


class Pixels(Sampling):
    def sample(self, num_samples):
        return (self.decode(self.noise(num_samples)) + 1) * 127.5


class Drawn(Sampling):
    """Its sample draws pixels from the decoder's answer."""

    def sample(self, num_samples):
        return torch.bernoulli(0.5 + 0.5 * self.decode(self.noise(num_samples)))


class Rejecting(Sampling):
    def noise(self, n):
        z = torch.randn(n, 4)
        while bool((z.abs() > 2).any()):
            z = torch.randn(n, 4)
        return z


class NumPy(Sampling):
    def noise(self, n):
        return torch.as_tensor(np.random.default_rng().normal(3, 0.5, (n, 4)), dtype=torch.float32)


def test_what_a_sampler_returns_counts():
    with pytest.raises(ExportError, match=r'likelihood="bernoulli"'):
        understood(Logits())
    assert prior_of(Logits(), likelihood="bernoulli").kind == "normal"
    with pytest.raises(ExportError, match="returns something other than decode's answer; pass decode="):
        understood(Pixels())
    assert prior_of(Drawn()).kind == "normal"
    assert prior_of(NumPy()).kind == "none"
    assert prior_of(Rejecting()).kind in ("none", "normal")


def test_an_example_of_equal_rows_hides_nothing():
    model = Skipping().eval()
    for x in (X[:1].repeat(6, 1), torch.zeros(4, 12)):
        with pytest.raises(ExportError, match="depends on the observation, too"), unchanged(model):
            adapt(model, x, Declaration())


def test_a_large_column_hides_no_small_one():
    class Columns(Softmax):
        def decode(self, z):
            return super().decode(z) * torch.tensor([1000.0] + [1.0] * 11)

    model = Columns()
    assert any("halves of forward" in line for line in understood(model).recognised)


class Numbers(Plain):
    def __init__(self):
        super().__init__()
        self.prior_std = 2.0


class Network(Plain):
    """Its prior is a network of a condition."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 8))


class Steady(Plain):
    """Noise on the latents of an autoencoder."""

    def encode(self, x):
        return Normal(super().encode(x)[0], 0.1)

    def forward(self, x):
        return self.decode(self.encode(x).rsample())


@pytest.mark.parametrize(
    ("model", "words"), [(Numbers, "prior_std"), (Network, "net.1"), (Steady, "same spread for every observation")]
)
def test_less_evident_priors_are_none(model, words):
    assert words in prior_of(model()).reason


def test_a_distribution_of_single_numbers_is_that_of_each():
    assert prior_of(Stated(Normal(torch.zeros(1), torch.ones(1)))).kind == "normal"
    assert prior_of(Stated(Normal(0.0, 1.0))).kind == "normal"
    _, means, _ = mixture_of(Stated(Normal(2.0, 1.0)))
    np.testing.assert_allclose(means, np.full((1, 4), 2.0))
