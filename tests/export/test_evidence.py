"""Evidence of another prior than the standard normal counts wherever a model keeps it."""

import re
import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from vae_export.errors import ExportError
from vae_export.understand.adapt import adapt, declared
from vae_export.understand.adapted import run_module
from vae_export.understand.choices import cut_at_choices
from vae_export.understand.cut import cut_forward
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
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)), mu, logvar


def understood(model, **declaration):
    model = model.eval()
    with unchanged(model):
        by, known = declared(model)
        return adapt(model, X, Declaration(**declaration).over(known), source=by)


def latent_of(model, **declaration):
    return understood(model, **declaration).signature.latent


def given(**attributes):
    """A plain model with these attributes."""
    model = Plain()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


class Numbers(nn.Module):
    """A prior that holds no weights."""

    def __init__(self, mean):
        super().__init__()
        self.mean, self.std = mean, 1.0


class Drawing(Numbers):
    def sample(self, n):
        return self.mean + self.std * torch.randn(n, 4)


NUMBERS = {
    "a number": lambda: given(prior_loc=3.0),
    "a whole number": lambda: given(prior_sigma=2),
    "a list": lambda: given(prior_mean=[3.0] * 4),
    "an array of numpy": lambda: given(prior_mean=np.full(4, 3.0)),
    "a tensor without a name": lambda: given(m=torch.full((4,), 2.0)),
    "a list without a name": lambda: given(mean=[0.5, 0.0, 1.0, 2.0]),
    "an object of numbers": lambda: given(prior=Numbers(3.0)),
    "a plain object": lambda: given(my_prior=types.SimpleNamespace(mean=3.0)),
    "a network of its own numbers": lambda: given(rows=nn.GRUCell(1, 7)),
}
STANDARD = {
    "nothing": Plain,
    "zeros": lambda: given(prior_mean=torch.zeros(4), prior_std=[1.0] * 4),
    "an object": lambda: given(prior=Numbers(0.0)),
    "a switch": lambda: given(learn_prior=False),
    "a name": lambda: given(prior="normal"),
    "a tensor of another size": lambda: given(weights=torch.full((3,), 2.0)),
    "sizes of layers": lambda: given(hidden=[32, 64, 128, 256]),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_a_prior_are_evidence(name):
    prior = latent_of(NUMBERS[name]()).prior
    assert prior.kind == "none"
    assert re.search(r"may be (a learned|another) prior", prior.reason)


@pytest.mark.parametrize("name", STANDARD)
def test_a_standard_normal_in_any_form_is_none(name):
    prior = latent_of(STANDARD[name]()).prior
    assert (prior.kind, prior.assumed) == ("normal", True)


def test_a_tensor_that_decode_reads_is_no_prior():
    class Weighing(Plain):
        def __init__(self):
            super().__init__()
            self.factors = torch.tensor([1.0, 2.0, 3.0, 4.0])

        def decode(self, z):
            return super().decode(z * self.factors)

    assert latent_of(Weighing()).prior.assumed


@pytest.mark.parametrize(("mean", "kind"), [(3.0, "mixture"), (0.0, "normal")])
def test_an_object_that_samples_the_prior_is_asked(mean, kind):
    adapted = understood(given(prior=Drawing(mean)))
    assert adapted.signature.latent.prior.kind == kind
    assert any("as Plain.prior.sample draws it" in line for line in adapted.recognised)


class Pair(Plain):
    def __init__(self, mean):
        super().__init__()
        self.mean = mean

    def prior(self):
        return torch.full((4,), self.mean), torch.zeros(4)


class PairOfRows(Pair):
    def prior(self, n):
        return torch.full((n, 4), self.mean), torch.ones(n, 4)


@pytest.mark.parametrize("cls", [Pair, PairOfRows])
def test_a_method_that_gives_the_numbers_of_the_prior_counts(cls):
    assert "prior()" in latent_of(cls(3.0)).prior.reason
    assert latent_of(cls(0.0)).prior.assumed


class Dreaming(Plain):
    """Its sampler has a name that says nothing."""

    def dream(self, n):
        return self.decode(3 + torch.randn(n, 4))


class Heated(Plain):
    def sample(self, n, temperature):
        return self.decode(temperature * (3 + torch.randn(n, 4)))


class Static(Plain):
    @staticmethod
    def sample_prior(n):
        return 3 + torch.randn(n, 4)


@pytest.mark.parametrize("cls", [Dreaming, Heated, Static])
def test_a_sampler_is_found_by_what_it_does(cls):
    assert latent_of(cls()).prior.kind == "mixture"


def test_a_method_that_decodes_noise_but_takes_no_number_is_left_alone():
    class Logging(Plain):
        def on_epoch_end(self):
            raise AssertionError(self.decode(torch.randn(2, 4)))

    assert latent_of(Logging()).prior.assumed


def test_an_index_that_may_be_that_of_a_condition_shows_no_mixture():
    class Labelling(Plain):
        def decode(self, z, y):
            return super().decode(z) + y[:, None]

        def forward(self, x, y):
            mu, logvar = self.encode(x)
            return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar), y)

        def sample(self, n):
            return self.decode(torch.randn(n, 4), torch.randint(3, (n,)))

    model = Labelling().eval()
    with unchanged(model):
        adapted = adapt(model, X, Declaration(), conditions={"y": torch.tensor([0, 1, 2, 0, 1, 2])})
    prior = adapted.signature.latent.prior
    assert (prior.kind, "index, which may be that of a condition" in str(prior.reason)) == ("none", True)


# Configurations.

SUPPLIED = {
    "an attribute": lambda: given(scaling_factor=0.5),
    "args": lambda: given(args=types.SimpleNamespace(scaling_factor=0.5)),
    "cfg": lambda: given(cfg={"scaling_factor": 0.5}),
    "the factor of latent diffusion": lambda: given(scale_factor=0.5),
    "a buffer": lambda: given(scale_factor=torch.tensor(0.5)),
}


@pytest.mark.parametrize("name", SUPPLIED)
def test_a_scale_of_the_latents_is_carried_from_wherever_it_is(name):
    for declaration, kind in (({}, "none"), ({"prior": "normal"}, "normal")):
        latent = latent_of(SUPPLIED[name](), **declaration)
        assert (latent.prior.kind, latent.scale, latent.shift) == (kind, 0.5, 0.0)
    assert latent_of(SUPPLIED[name](), prior="normal", latent_scale=2.0).scale == 2.0


@pytest.mark.parametrize("name", ["use_tiling", "use_slicing", "use_quant_conv"])
def test_settings_of_a_part_of_latent_diffusion_say_that_another_model_supplies_the_latents(name):
    for model in (given(config={name: False}), given(**{name: False})):
        assert f"as {name} in this model says" in latent_of(model).prior.reason


def test_a_whole_scale_factor_counts_pixels():
    assert latent_of(given(scale_factor=2)).prior.assumed
    config = {"scale_factor": 8, "use_quant_conv": True}
    assert latent_of(given(config=config)).scale == 1.0


def test_statistics_that_are_no_number_for_each_channel_are_said():
    config = {"latents_mean": [0.5] * 3, "latents_std": [2.0] * 3, "scaling_factor": 0.5}
    latent = latent_of(given(config=config))
    assert "not one number for each channel" in latent.prior.reason
    assert (latent.scale, latent.shift) == (1.0, 0.0)


# A forward that is cut, without a decode that shows where the latents end.


class Cut(nn.Module):
    def __init__(self, behind):
        super().__init__()
        torch.manual_seed(8)
        self.first, self.behind, self.last = nn.Linear(12, 8), behind, nn.Linear(4, 12)

    def forward(self, x):
        mu, logvar = self.first(x).chunk(2, 1)
        return self.last(self.behind(mu + torch.randn_like(mu) * logvar.exp()))


class Coupling(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 4)

    def forward(self, z):
        kept, moved = z.chunk(2, 1)
        log_factor, offset = self.layer(kept).chunk(2, 1)
        return torch.cat([kept, moved * log_factor.exp() + offset], 1)


class Planar(nn.Module):
    def __init__(self):
        super().__init__()
        self.u, self.w = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))

    def forward(self, z):
        return z + self.u * torch.tanh(z @ self.w)[:, None]


@pytest.mark.parametrize(
    ("behind", "settled"),
    [
        (Coupling(), False),
        (Planar(), False),
        (nn.Linear(4, 4), False),
        (nn.Identity(), True),
        (nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 5), nn.Linear(5, 9), nn.Linear(9, 4)), False),
    ],
    ids=["a coupling", "planar", "a layer", "nothing", "layers"],
)
def test_a_map_of_the_latents_behind_the_cut_leaves_the_prior_open(behind, settled):
    prior = latent_of(Cut(behind)).prior
    assert prior.assumed == settled
    assert settled or "before or after" in prior.reason


class Beside(nn.Module):
    """Its decoder takes latents beside something else."""

    def __init__(self, beside):
        super().__init__()
        torch.manual_seed(8)
        self.enc, self.beside, self.decoder = nn.Linear(12, 8), beside, nn.Linear(4 + 3, 12)
        if beside is another_latent:
            self.second = nn.Linear(12, 6)

    def forward(self, x):
        mu, logvar = self.enc(x).chunk(2, 1)
        z = mu + torch.randn_like(mu) * logvar.exp()
        return self.decoder(torch.cat([self.beside(self, x, z), z], 1))


def another_latent(model, x, z):
    mu, logvar = model.second(x).chunk(2, 1)
    return mu + torch.randn_like(mu) * logvar.exp()


def numbers(model, x, z):
    return torch.full((x.shape[0], 3), 0.5)


def a_change_of_the_latent(model, x, z):
    return torch.tanh(z[:, :3])


@pytest.mark.parametrize("beside", [another_latent, numbers, a_change_of_the_latent])
def test_latents_that_decode_takes_beside_others_have_their_own_prior(beside):
    settled = beside is not a_change_of_the_latent
    for latent in understood(Beside(beside)).signature.latents:
        assert (latent.prior.kind, latent.prior.assumed) == (("normal", True) if settled else ("none", False))
        assert settled or "before or after" in latent.prior.reason


def test_a_condition_beside_the_latents_is_no_change_of_them():
    class Conditional(Beside):
        def forward(self, x, c):
            self.beside = lambda model, x, z: c
            return super().forward(x)

    model = Conditional(None).eval()
    with unchanged(model):
        adapted = adapt(model, X, Declaration(), conditions={"c": torch.eye(3)[torch.arange(6) % 3]})
    assert (adapted.signature.latent.prior.kind, adapted.signature.latent.prior.assumed) == ("normal", True)


class Widened(nn.Module):
    """A layer makes of the latents what its decoder takes."""

    def __init__(self, width=(16,), change=None, mean=None):
        super().__init__()
        torch.manual_seed(8)
        self.enc, self.change, self.mean, self.width = nn.Linear(12, 8), change, mean, width
        self.widen, self.decoder = nn.Linear(4, 16), nn.Sequential(nn.Flatten(), nn.Linear(16, 12))

    def forward(self, x):
        mu, logvar = self.enc(x).chunk(2, 1)
        mu = self.mean(mu) if self.mean else mu
        z = mu + torch.randn_like(mu) * logvar.exp()
        return self.decoder(self.widen(self.change(z) if self.change else z).view(-1, *self.width)), mu, logvar


class Zero(Planar):
    """A flow that is the identity before its training."""

    def __init__(self):
        super().__init__()
        self.u.data.zero_()


class Halved(Widened):
    """No layer comes before its decoder, which takes a part of the changed latents."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Linear(2, 12)

    def forward(self, x):
        mu, logvar = self.enc(x).chunk(2, 1)
        z = mu + torch.randn_like(mu) * logvar.exp()
        return self.decoder(torch.tanh(z[:, :2]) + z[:, 2:]), mu, logvar


class AsMap(Widened):
    """Its decoder takes the latents as maps of one pixel."""

    def __init__(self, change=None):
        super().__init__(change=change)
        self.decoder = nn.Sequential(nn.ConvTranspose2d(4, 1, (3, 4)), nn.Flatten())
        self.widen = nn.Unflatten(1, (4, 1, 1))
        self.width = (4, 1, 1)


UNIT = functional.normalize
WIDENED = {
    "vector": (lambda: Widened(), True),
    "map": (lambda: Widened((4, 2, 2)), True),
    "one pixel": (lambda: AsMap(), True),
    "one pixel of a softmax": (lambda: AsMap(nn.Softmax(1)), False),
    "flow": (lambda: Widened((4, 2, 2), Planar()), False),
    "flow that is the identity as yet": (lambda: Widened((4, 2, 2), Zero()), False),
    "softmax": (lambda: Widened((4, 2, 2), nn.Softmax(1)), False),
    "direction of a direction": (lambda: Widened((4, 2, 2), UNIT, UNIT), False),
    "part": (lambda: Halved(), False),
}


@pytest.mark.parametrize("name", WIDENED)
def test_a_layer_before_the_decoder_is_no_change_of_the_latents(name):
    make, settled = WIDENED[name]
    model, z = make(), torch.randn(5, 4)
    adapted = understood(model)
    prior = adapted.signature.latent.prior
    assert (prior.kind, prior.assumed) == (("normal", True) if settled else ("none", False))
    assert settled or "before or after" in prior.reason
    if settled:
        expected = model.decoder(model.widen(z).view(-1, *model.width)).detach()
        torch.testing.assert_close(run_module(adapted.modules["decoder"], [z])[0], expected)


class FirstSteps(Plain):
    """The layer of its log variance begins with zeros."""

    def __init__(self):
        super().__init__()
        self.spread = nn.Linear(8, 4)
        nn.init.zeros_(self.spread.weight)
        nn.init.zeros_(self.spread.bias)

    def encode(self, x):
        h = self.body(x)
        return h[:, :4], self.second(h)

    def second(self, h):
        return self.spread(h)


class OneSpread(FirstSteps):
    """One spread for all observations, though it is learned."""

    def second(self, h):
        return self.spread.bias.expand(len(h), 4) + 0 * self.spread(h)


class NoSpread(FirstSteps):
    def second(self, h):
        return (self.spread(h) + 1).clamp(max=0)


class Frozen(FirstSteps):
    def __init__(self):
        super().__init__()
        self.requires_grad_(False)


class OutsideOfPyTorch(FirstSteps):
    """No gradients can be asked for."""

    def encode(self, x):
        h = self.body(x)
        return h[:, :4], self.second(torch.from_numpy(h.numpy()))


class Counting(FirstSteps):
    """It samples in training mode alone, and moves a buffer there."""

    encode = decode = None

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(12))

    def forward(self, x):
        h = self.body(x - self.center)
        if self.training:
            self.center.add_(0.1)
        z = h[:, :4]
        if self.training:
            z = z + torch.randn_like(z) * torch.exp(0.5 * self.second(h))
        return self.head(z)


def test_gradients_leave_the_buffers_of_a_model():
    model = Counting().eval()
    with unchanged(model):
        adapted = adapt(model, X, Declaration())
        assert torch.equal(model.center, torch.zeros(12))
        mu, _, _ = run_module(adapted.modules["encoder"], [X])
    with torch.no_grad():
        torch.testing.assert_close(mu, model.body(X)[:, :4])


@pytest.mark.parametrize(
    ("cls", "settled"),
    [(FirstSteps, True), (OneSpread, False), (NoSpread, False), (Frozen, False), (OutsideOfPyTorch, False)],
)
def test_a_spread_that_is_the_same_before_a_training_alone_is_no_noise_of_an_autoencoder(cls, settled):
    model = cls()
    adapted = understood(model, posterior="logvar")
    prior = adapted.signature.latent.prior
    assert (prior.kind, prior.assumed) == (("normal", True) if settled else ("none", False))
    assert settled or "same spread" in prior.reason
    mu, logvar, std = run_module(adapted.modules["encoder"], [X])
    with torch.no_grad():
        torch.testing.assert_close(mu, model.encode(X)[0])
    torch.testing.assert_close((logvar, std), (torch.zeros(6, 4), torch.ones(6, 4)))


class Recording(Plain):
    """Keeps what its loss needs."""

    def forward(self, x):
        self.mu, self.logvar = self.encode(x)
        self.z = self.mu + torch.randn_like(self.mu) * torch.exp(0.5 * self.logvar)
        return self.decode(self.z)


def test_what_a_run_leaves_in_the_model_is_no_prior():
    model = Recording()
    model(torch.rand(128, 12))  # as a training step does
    assert latent_of(model).prior.assumed
    model.shift = torch.randn(4)
    assert "shift, which may be a learned prior" in latent_of(model).prior.reason
    # An average over what was seen has no rows.
    model = Recording()
    model.register_forward_hook(lambda module, given, answer: setattr(module, "shift", module.mu.mean(0)))
    assert "shift, which may be a learned prior" in latent_of(model).prior.reason


class OfBinary(Plain):
    """Keeps what its loss needs behind a likelihood that takes zeros and ones alone."""

    def forward(self, x):
        mu, logvar = self.encode(x)
        y = self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar))
        torch.distributions.Bernoulli(logits=y, validate_args=True).log_prob(x)
        self.last = mu
        return y


def test_a_record_of_a_model_that_refuses_other_observations_is_no_prior():
    x = (X > 0.5).float()
    model = OfBinary().eval()
    model(x)
    with unchanged(model):
        prior = adapt(model, x, Declaration()).signature.latent.prior
    assert (prior.kind, prior.assumed) == ("normal", True)


class Centered(Plain):
    """Keeps the centers of its latents, which its loss draws them to: those of the conditions, or its own."""

    def __init__(self, of_conditions):
        super().__init__()
        self.embed, self.of_conditions = nn.Linear(3, 4), of_conditions

    def encode(self, x, c):
        mu, logvar = super().encode(x)
        return mu + self.embed(c), logvar

    def decode(self, z, c):
        return super().decode(z + self.embed(c))

    def forward(self, x, c):
        mu, logvar = self.encode(x, c)
        self.center = self.embed(c) if self.of_conditions else mu
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar), c)


@pytest.mark.parametrize("of_conditions", [True, False])
def test_what_follows_from_conditions_alone_may_be_a_prior(of_conditions):
    model, conditions = Centered(of_conditions).eval(), torch.eye(3)[torch.arange(6) % 3]
    model(X, conditions)
    with unchanged(model):
        prior = adapt(model, X, Declaration(), conditions={"c": conditions}).signature.latent.prior
    assert (prior.kind, prior.assumed) == (("none", False) if of_conditions else ("normal", True))
    assert not of_conditions or "center, which may be a learned prior" in prior.reason


class WithPriorNet(Plain):
    """A layer of PyTorch, or one of its own, that may be a prior's."""

    def __init__(self, prior_net):
        super().__init__()
        self.prior_net = prior_net


def test_sizes_of_a_layer_are_no_numbers_of_a_prior():
    reason = str(latent_of(WithPriorNet(nn.Linear(10, 8))).prior.reason)
    assert "reads prior_net.weight, prior_net.bias, which may be" in reason
    assert latent_of(WithPriorNet(nn.Dropout(0.3))).prior.assumed
    # A module of the model's own may keep them.
    own = Recording()
    own.spread = 2.5
    assert "prior_net.spread" in latent_of(WithPriorNet(own)).prior.reason


# Latents that are drawn in training mode alone.


class Classes(nn.Module):
    def __init__(self, draw, usual=lambda q: q):
        super().__init__()
        torch.manual_seed(4)
        self.first, self.last, self.draw, self.usual = nn.Linear(12, 15), nn.Linear(15, 12), draw, usual

    def encode(self, x):
        return torch.softmax(self.first(x).view(-1, 3, 5), -1)

    def decode(self, z):
        return self.last(z.reshape(-1, 15))

    def forward(self, x):
        q = self.encode(x)
        return self.decode(self.draw(q) if self.training else self.usual(q)), q


IN_TRAINING = {
    "gumbel_softmax": lambda q: functional.gumbel_softmax(q.log(), 0.5),
    "bernoulli": torch.bernoulli,
    "rand_like": lambda q: (torch.rand_like(q) < q).float(),
    "dirichlet": lambda q: torch.distributions.Dirichlet(q).rsample(),
}


@pytest.mark.parametrize("name", IN_TRAINING)
def test_classes_that_are_drawn_in_training_mode_make_no_deterministic_autoencoder(name):
    with pytest.raises(ExportError, match=r"in training mode; if these are latents, pass encode=.* posterior=\"none\""):
        understood(Classes(IN_TRAINING[name]))
    # What evaluation does is an autoencoder, for who says so.
    assert latent_of(Classes(IN_TRAINING[name]), posterior="none").posterior.kind == "none"


def test_classes_that_evaluation_chooses_are_codes():
    model = Classes(IN_TRAINING["gumbel_softmax"], lambda q: functional.one_hot(q.argmax(-1), 5).float())
    latent = latent_of(model)
    assert (latent.posterior.kind, latent.posterior.codebook, latent.shape) == ("codes", 5, (3,))


def test_classes_that_a_training_step_draws_make_no_deterministic_autoencoder():
    class Stepping(Classes):
        def forward(self, x):
            return self.encode(x)

        def training_step(self, batch):
            return (self.decode(functional.gumbel_softmax(self.encode(batch).log())) - batch).square().mean()

    model = Stepping(None)
    with pytest.raises(ExportError, match=r"nothing to compare, and training_step draws; if these are latents"):
        understood(model)
    assert latent_of(model, posterior="none").posterior.kind == "none"


# Where forward cannot be cut, the reason is the one that holds.


class Bounded(Plain):
    """Its noise is cut off."""

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu).clamp(-1, 1) * torch.exp(0.5 * logvar)), mu, logvar


class Stacked(Plain):
    """It averages five latents that lie before the rows."""

    def forward(self, x):
        mu, logvar = (tensor[None].repeat(5, 1, 1) for tensor in self.encode(x))
        return self.decode((mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)).mean(0))


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Bounded, "its latent is no mean plus noise times a standard deviation, each number for itself"),
        (Stacked, r"it draws noise of the shape \[5, 6, 4\], not a row for each observation"),
    ],
)
def test_the_reason_why_forward_cannot_be_cut(cls, words):
    with pytest.raises(ExportError, match=words):
        understood(cls())


@pytest.mark.parametrize("draw", [torch.randn_like, torch.rand_like])
def test_a_choice_of_codes_beside_noise_is_no_cut(draw):
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up, self.book = nn.Linear(12, 4), nn.Linear(4, 12), nn.Embedding(9, 4)

        def forward(self, x):
            vectors = self.book(torch.cdist(self.down(x), self.book.weight).argmin(1))
            return self.up(vectors + 0.1 * draw(vectors))

    model = Noisy().eval()
    with unchanged(model), pytest.raises(ExportError, match="it draws noise"):
        cut_at_choices(model, X, {})


def test_a_forward_that_draws_otherwise_too_is_no_cut():
    class Masking(Plain):
        def forward(self, x):
            mu, logvar = self.encode(x)
            z = mu + torch.randn_like(mu) * torch.exp(0.5 * logvar)
            return self.decode(z * (torch.rand_like(z) < 2.0))

    model = Masking().eval()
    with unchanged(model), pytest.raises(ExportError, match="it draws with rand_like, too"):
        cut_forward(model, X, {})


class OfClasses(Plain):
    """Each class has latents of its own mean; that of class 0, which is the first row's, is 0."""

    def __init__(self, scale):
        super().__init__()
        self.means = nn.Embedding(3, 4, padding_idx=0)
        with torch.no_grad():
            self.means.weight.mul_(scale)

    def encode(self, x, label):
        return self.body(x).chunk(2, 1)

    def decode(self, z, label):
        return torch.sigmoid(self.head(z)) + label[:, None]

    def forward(self, x, label):
        mu, logvar = self.encode(x, label)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar), label)

    def sample(self, n, label):
        return self.decode(torch.randn(n, 4) + self.means(label), label)


@pytest.mark.parametrize(("scale", "kind"), [(3.0, "none"), (0.0, "normal")])
def test_a_sampler_draws_by_every_condition(scale, kind):
    model = OfClasses(scale).eval()
    with unchanged(model):
        adapted = adapt(model, X, Declaration(posterior="logvar"), conditions={"label": torch.arange(6) % 3})
    prior = adapted.signature.latent.prior
    assert prior.kind == kind
    assert kind == "normal" or "draws other latents where the conditions are others" in prior.reason
