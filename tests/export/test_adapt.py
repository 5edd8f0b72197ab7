"""What is understood of a model by itself, from what, and which argument settles what is not."""

import time
from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Exponential, Independent, Laplace, Normal, Poisson

import vae_export
from vae_export import ExportError
from vae_export.understand.adapt import adapt, declared
from vae_export.understand.adapted import run_module, timed_run
from vae_export.understand.declaration import Declaration
from vae_export.understand.state import unchanged
from vae_runtime.manifest import Likelihood

X = torch.rand(4, 10, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    """Everything but what `encode` gives, which each test says: mu and logvar are at hand."""

    def __init__(self, give=None):
        super().__init__()
        torch.manual_seed(1)
        self.mu, self.logvar, self.head = nn.Linear(10, 3), nn.Linear(10, 3), nn.Linear(3, 10)
        self.give = give

    def encode(self, x):
        mu, logvar = self.mu(x), self.logvar(x)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return self.give(mu, logvar, z)

    def decode(self, z):
        return self.head(z)

    def forward(self, x):
        mu, logvar = self.mu(x), self.logvar(x)
        return self.decode(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu))


Pair = namedtuple("Pair", ["mean", "log_var"])


@dataclass
class Record:
    z: torch.Tensor
    mu: torch.Tensor
    std: torch.Tensor


class Bag:
    def __init__(self, mu, sigma):
        self.mu, self.sigma = mu, sigma


FORMS = {
    "mean and logvar": lambda mu, logvar, z: (mu, logvar),
    "list": lambda mu, logvar, z: [mu, logvar],
    "sample first": lambda mu, logvar, z: (z, mu, logvar),
    "sample last": lambda mu, logvar, z: (mu, logvar, z),
    "mapping": lambda mu, logvar, z: {"z": z, "mu": mu, "logvar": logvar},
    "named tuple": lambda mu, logvar, z: Pair(mu, logvar),
    "dataclass": lambda mu, logvar, z: Record(z, mu, torch.exp(0.5 * logvar)),
    "object": lambda mu, logvar, z: Bag(mu, torch.exp(0.5 * logvar)),
    "variance by name": lambda mu, logvar, z: {"mean": mu, "var": logvar.exp()},
    "log std by name": lambda mu, logvar, z: {"loc": mu, "log_std": 0.5 * logvar},
    "Normal": lambda mu, logvar, z: Normal(mu, torch.exp(0.5 * logvar)),
    "Independent": lambda mu, logvar, z: Independent(Normal(mu, torch.exp(0.5 * logvar)), 1),
    "Normal in a mapping": lambda mu, logvar, z: {"qz": Normal(mu, torch.exp(0.5 * logvar)), "z": z},
    "doubled": lambda mu, logvar, z: torch.cat([mu, logvar], 1),
    "std": lambda mu, logvar, z: (mu, torch.exp(0.5 * logvar)),
    "var": lambda mu, logvar, z: (mu, logvar.exp()),
    "log std": lambda mu, logvar, z: (mu, 0.5 * logvar),
    "softplus": lambda mu, logvar, z: (mu, torch.log(torch.expm1(torch.exp(0.5 * logvar)))),
}


def understood(model, declaration=None, x=X, **arguments):
    with unchanged(model):
        source, known = declared(model)
        adapted = adapt(model, x, (declaration or Declaration()).over(known), source=source, **arguments)
        outputs = {
            component: dict(zip(adapted.outputs(component), run_module(module, adapted.given(component)), strict=True))
            for component, module in adapted.modules.items()
        }
    return adapted, outputs


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_normal_posterior_is_the_same_posterior(form):
    model = Base(FORMS[form])
    adapted, outputs = understood(model)
    with torch.no_grad():
        mu, logvar = model.mu(X), model.logvar(X)
    encoder = outputs["encoder"]
    assert list(encoder) == ["mu", "logvar", "std"]
    torch.testing.assert_close(encoder["mu"], mu)
    torch.testing.assert_close(encoder["logvar"], logvar, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(encoder["std"], torch.exp(0.5 * logvar), rtol=1e-4, atol=1e-5)
    assert adapted.signature.latent.prior.kind == "normal"


class Quiet(Base):
    """Its forward shows nothing of the posterior, so that what is declared stands."""

    def forward(self, x):
        return self.decode(self.mu(x))


@pytest.mark.parametrize(("declaration", "power"), [("std", None), ("logvar", 0.5), ("log_std", 1.0)])
def test_an_argument_is_believed_where_forward_shows_nothing(declaration, power):
    with pytest.raises(ExportError, match=r"forward draws no normal noise; pass posterior="):
        understood(Quiet(FORMS["mean and logvar"]))
    model = Quiet(FORMS["mean and logvar"])
    model.logvar.bias.data += 10  # positive, so that it may be a standard deviation
    _, outputs = understood(model, Declaration(posterior=declaration))
    with torch.no_grad():
        second = model.logvar(X)
    expected = second if power is None else torch.exp(power * second)
    torch.testing.assert_close(outputs["encoder"]["std"], expected)


def test_several_pairs_are_several_latents():
    class Levels(Base):
        def encode(self, x):
            return (self.mu(x), self.logvar(x)), (2 * self.mu(x)[:, :2], self.logvar(x)[:, :2])

        def decode(self, z1, z2):
            return self.head(z1) + z2.sum(1, keepdim=True)

        def forward(self, x):
            zs = [mu + torch.exp(0.5 * logvar) * torch.randn_like(mu) for mu, logvar in self.encode(x)]
            return self.decode(*zs)

    adapted, outputs = understood(Levels())
    assert [(latent.name, latent.shape) for latent in adapted.signature.latents] == [("z1", (3,)), ("z2", (2,))]
    assert list(outputs["encoder"]) == ["mu_z1", "logvar_z1", "std_z1", "mu_z2", "logvar_z2", "std_z2"]


def test_integers_are_codes_and_one_tensor_is_no_posterior():
    class Codes(Base):
        def encode(self, x):
            return (self.mu(x) > 0).long()

        def decode(self, codes):
            return self.head(codes.float())

        def forward(self, x):
            return self.decode(self.encode(x))

    class Deterministic(Base):
        def encode(self, x):
            return self.mu(x)

        def forward(self, x):
            return self.decode(self.encode(x))

    with pytest.raises(ExportError, match="codebook="):
        understood(Codes())
    with pytest.raises(ExportError, match="expected more than 1 codes"):
        understood(Codes(), Declaration(codebook=1))
    signature = understood(Codes(), Declaration(codebook=2))[0].signature
    assert (signature.latent.posterior.kind, signature.latent.posterior.codebook) == ("codes", 2)
    assert signature.latent.dtype == "int64"
    latent = understood(Deterministic())[0].signature.latent
    assert (latent.posterior.kind, latent.prior.kind) == ("none", "none")
    assert "deterministic" in latent.posterior.reason


def test_the_models_own_declaration_is_first():
    class Declared(Base):
        def __vae_export__(self):
            return {"posterior": "std", "likelihood": "gaussian", "scale": 0.1}

    model = Declared(lambda mu, logvar, z: (mu, torch.exp(0.5 * logvar)))
    adapted, _ = understood(model)
    assert adapted.recognised[0] == "declared by Declared.__vae_export__"
    assert (adapted.signature.likelihood.kind, adapted.signature.likelihood.scale) == ("gaussian", 0.1)
    # An argument is still before it.
    adapted, _ = understood(model, Declaration(scale=0.5))
    assert adapted.signature.likelihood.scale == 0.5


@pytest.mark.parametrize("declaration", [{"posteriors": "std"}, ["posterior"]])
def test_a_declaration_of_unknown_things_is_refused(declaration):
    class Declared(Base):
        def __vae_export__(self):
            return declaration

    with pytest.raises(ExportError, match=r"Declared.__vae_export__: expected a mapping with some of .*posterior"):
        declared(Declared())


def test_functions_and_names_settle_where_to_look(tmp_path):
    class Odd(Base):
        def into(self, x):
            return {"first": self.mu(x), "second": self.logvar(x)}

        encode = decode = None

        def out_of(self, z):
            return {"picture": self.head(z)}

    model = Odd()
    with pytest.raises(ExportError, match="encode="):
        understood(model)
    with pytest.raises(ExportError, match="expected fields such as mu and logvar, dict has first, second"):
        understood(model, Declaration(encode="into", decode="out_of"))
    declaration = Declaration(
        encode=lambda x: tuple(model.into(x).values()), decode=lambda z: model.out_of(z)["picture"], posterior="logvar"
    )
    _, outputs = understood(model, declaration)
    with torch.no_grad():
        torch.testing.assert_close(outputs["encoder"]["mu"], model.mu(X))
    arguments = {
        "encode": declaration.encode,
        "decode": declaration.decode,
        "posterior": "logvar",
        "formats": ("onnx",),
    }
    assert vae_export.export(model, tmp_path / "bundle", example=X, **arguments).parity.passed


def test_likelihoods_are_read_from_distributions_and_from_what_is_said():
    class Sharp(Base):
        def decode(self, z):
            return torch.sigmoid(self.head(z))

    model = Sharp(FORMS["mean and logvar"])
    _, outputs = understood(model, Declaration(likelihood="bernoulli", posterior="logvar"))
    decoder = outputs["decoder"]
    torch.testing.assert_close(torch.sigmoid(decoder["logits"]), decoder["x"])
    assert float(decoder["logits"].min()) < 0
    adapted, outputs = understood(Base(FORMS["mean and logvar"]), Declaration(likelihood="bernoulli"))
    assert 0 <= float(outputs["decoder"]["x"].min()) < float(outputs["decoder"]["x"].max()) <= 1
    assert any("decode returns logits" in line for line in adapted.recognised)
    adapted, _ = understood(Base(FORMS["mean and logvar"]))
    assert adapted.signature.likelihood.kind == "none"
    assert "likelihood=" in adapted.signature.likelihood.reason


@pytest.mark.parametrize("last", [nn.Tanh(), nn.ReLU(), nn.ReLU(inplace=True), nn.Softplus(), nn.Hardtanh()])
def test_an_activation_that_is_no_sigmoid_gives_no_logits(last):
    def decoding(function):
        model = Base(FORMS["mean and logvar"])
        model.decode = lambda z: function(2 * model.head(z))[:, None].flatten(1)
        return model

    declared = Declaration(likelihood="bernoulli", posterior="logvar")
    with pytest.raises(
        ExportError, match=r"expected logits or probabilities .*, got the values of a .*; let decode end"
    ):
        understood(decoding(last), declared)
    with pytest.raises(ExportError, match="let decode end in a sigmoid"):
        understood(decoding(lambda y: last(y).flip(1)), declared)
    adapted, _ = understood(decoding(lambda y: last(y) - 1), declared)
    assert adapted.signature.likelihood.logits == "logits"
    if isinstance(last, nn.Tanh):
        adapted, _ = understood(decoding(lambda y: (1 + last(y)) / 2), declared)
        assert adapted.signature.likelihood.logits is None


def test_a_probe_that_tells_nothing_names_the_argument():
    model = Base(FORMS["mean and logvar"])
    model.logvar.weight.data.zero_()
    model.logvar.bias.data.zero_()
    # With logvar 0 the std is 1, and so is exp(0): both meanings give the same.
    with pytest.raises(ExportError, match=r"forward does not show what.*pass posterior=, one of logvar, std"):
        understood(model)


# What else the table of docs/bring-your-own.md has.


def test_the_mean_comes_first():
    """The other order is no meaning that fits, and is not exported as one."""
    with pytest.raises(
        ExportError,
        match=r"expected the mean first; forward shows that it returns the logvar first and the mean second",
    ):
        understood(Base(lambda mu, logvar, z: (logvar, mu)))


@pytest.mark.parametrize("give", [FORMS["sample first"], FORMS["sample last"], lambda mu, logvar, z: (mu, z, logvar)])
def test_samples_between_the_parameters_are_left_out(give):
    adapted, outputs = understood(Base(give))
    assert list(outputs["encoder"]) == ["mu", "logvar", "std"]
    # Nothing that the graph gives is random.
    again = run_module(adapted.modules["encoder"], adapted.given("encoder"))
    assert all(torch.equal(a, b) for a, b in zip(outputs["encoder"].values(), again, strict=True))


class Named(Base):
    """Two latents by name, in a mapping."""

    def encode(self, x):
        return {"top": (self.mu(x), self.logvar(x)), "bottom": Normal(2 * self.mu(x)[:, :2], torch.ones(len(x), 2))}

    def decode(self, top, bottom):
        return self.head(top) + bottom.sum(1, keepdim=True)

    def forward(self, x):
        (mu, logvar), bottom = self.encode(x).values()
        return self.decode(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu), bottom.rsample())


def test_latents_of_a_mapping_keep_their_names():
    adapted, outputs = understood(Named())
    assert [(latent.name, latent.shape) for latent in adapted.signature.latents] == [("top", (3,)), ("bottom", (2,))]
    names = [f"{output}_{latent}" for latent in ("top", "bottom") for output in ("mu", "logvar", "std")]
    assert list(outputs["encoder"]) == names
    torch.testing.assert_close(outputs["encoder"]["std_bottom"], torch.ones(4, 2))


class Ladder(Base):
    """The second latent's posterior is that of a sample of the first one."""

    def __init__(self):
        super().__init__()
        self.above, self.head = nn.Linear(3, 4), nn.Linear(5, 10)

    def encode(self, x):
        mu, logvar = self.mu(x), self.logvar(x)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return (mu, logvar), self.above(z).chunk(2, 1)

    def decode(self, z1, z2):
        return self.head(torch.cat([z1, z2], 1))

    def forward(self, x):
        mu, logvar = self.mu(x), self.logvar(x)
        z1 = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        above, spread = self.above(z1).chunk(2, 1)
        return self.decode(z1, above + torch.exp(0.5 * spread) * torch.randn_like(above))


def test_noise_that_the_model_draws_on_the_way_becomes_an_input():
    model = Ladder()
    adapted, _ = understood(model)
    assert [latent.posterior.noise for latent in adapted.signature.latents] == ["eps_z1", None]
    assert [tensor.name for tensor in adapted.signature.inputs("encoder")] == ["x", "eps_z1"]
    for noise in (torch.zeros(4, 3), adapted.examples["eps_z1"]):
        with torch.no_grad():
            mu, logvar = model.mu(X), model.logvar(X)
            expected = model.above(mu + torch.exp(0.5 * logvar) * noise)[:, :2]
        found = dict(zip(adapted.outputs("encoder"), run_module(adapted.modules["encoder"], [X, noise]), strict=True))
        torch.testing.assert_close(found["mu_z2"], expected)
    assert not torch.equal(adapted.examples["eps_z1"], torch.zeros(4, 3))


@dataclass
class Sample:
    sample: torch.Tensor


DECODED = {
    "tensor": (lambda y: y, "none", ["x"]),
    "tuple": (lambda y: (y, y[:, :2]), "none", ["x"]),
    "object": (Sample, "none", ["x"]),
    "mapping": (lambda y: {"x_hat": y}, "none", ["x"]),
    # Any other distribution leaves its mean and declares no likelihood.
    "Exponential": (lambda y: Exponential((-y).exp()), "none", ["x"]),
    "mapping with more": (lambda y: {"mean": y, "extra": y[:, :2] + 1}, "none", ["x", "extra"]),
    "Normal in an object": (lambda y: Sample(Normal(y, 0.5)), "gaussian", ["x"]),
    "Normal": (lambda y: Normal(y, torch.full_like(y, 0.5)), "gaussian", ["x"]),
    "Normal of many scales": (lambda y: Independent(Normal(y, 0.1 + y.abs()), 1), "gaussian", ["x", "scale"]),
    "Bernoulli of logits": (lambda y: Bernoulli(logits=y), "bernoulli", ["x", "logits"]),
    "Bernoulli of probabilities": (lambda y: Bernoulli(torch.sigmoid(y)), "bernoulli", ["x", "logits"]),
    "Independent": (lambda y: Independent(Bernoulli(logits=y), 1), "bernoulli", ["x", "logits"]),
}


@pytest.mark.parametrize("form", DECODED)
def test_every_form_of_what_a_decoder_gives(form):
    give, kind, names = DECODED[form]

    class Giving(Base):
        def decode(self, z):
            return give(self.head(z))

    model = Giving(FORMS["Normal"])
    adapted, outputs = understood(model)
    assert adapted.signature.likelihood.kind == kind
    assert list(outputs["decoder"]) == names
    with torch.no_grad():
        y = model.head(adapted.examples["z"])
    expected = {
        "x": torch.sigmoid(y) if kind == "bernoulli" else y.exp() if form == "Exponential" else y,
        "logits": y,
        "scale": 0.1 + y.abs(),
        "extra": y[:, :2] + 1,
    }
    for name, tensor in outputs["decoder"].items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-5)
    if form in ("Normal", "Normal in an object"):
        assert (adapted.signature.likelihood.scale, adapted.signature.likelihood.scale_output) == (0.5, None)
    if "scale" in names:
        assert (adapted.signature.likelihood.scale, adapted.signature.likelihood.scale_output) == (None, "scale")


@pytest.mark.parametrize(
    ("form", "hint", "kind", "names"),
    [
        ("mean and logvar", "none", "none", ["z"]),
        ("mapping", "none", "none", ["z"]),
        ("Normal", "none", "none", ["z"]),
        ("doubled", "logvar", "normal", ["mu", "logvar", "std"]),
        ("doubled", "std", "normal", ["mu", "logvar", "std"]),
    ],
)
def test_a_hint_overrides_what_would_be_found(form, hint, kind, names):
    model = Quiet(FORMS[form])
    model.logvar.bias.data += 10  # positive, so that it may be a standard deviation
    adapted, outputs = understood(model, Declaration(posterior=hint))
    assert adapted.signature.latent.posterior.kind == kind
    assert list(outputs["encoder"]) == names
    with torch.no_grad():
        mu, second = model.mu(X), model.logvar(X)
    torch.testing.assert_close(outputs["encoder"][names[0]], mu)
    if kind == "normal":
        expected = second if hint == "std" else torch.exp(0.5 * second)
        torch.testing.assert_close(outputs["encoder"]["std"], expected, rtol=1e-4, atol=1e-5)


def test_codes_may_be_said():
    class Counted(Base):
        def encode(self, x):
            return torch.round(4 * x[:, :3])

        def decode(self, z):
            return self.head(z.float())

        def forward(self, x):
            return self.decode(self.encode(x))

    for posterior, kind, dtype in (("codes", "codes", "int64"), (None, "none", "float32")):
        codebook = 5 if posterior else None
        latent = understood(Counted(), Declaration(posterior=posterior, codebook=codebook))[0].signature.latent
        assert (latent.posterior.kind, latent.dtype) == (kind, dtype)


def test_names_of_methods_settle_where_to_look():
    class Odd(Base):
        encode = decode = None

        def into(self, x):
            return self.mu(x), self.logvar(x)

        def out_of(self, z):
            return self.head(z)

        def forward(self, x):
            mu, logvar = self.into(x)
            return self.out_of(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu))

    model = Odd()
    adapted, outputs = understood(model, Declaration(encode="into", decode="out_of"))
    assert {"encode: Odd.into", "decode: Odd.out_of"} <= set(adapted.recognised)
    with torch.no_grad():
        torch.testing.assert_close(outputs["encoder"]["mu"], model.mu(X))
        torch.testing.assert_close(outputs["decoder"]["x"], model.head(adapted.examples["z"]))


def test_submodules_serve_where_there_are_no_methods():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.encoder, self.decoder = nn.Linear(10, 6), nn.Linear(3, 10)

        def forward(self, x):
            mu, logvar = self.encoder(x).chunk(2, 1)
            return self.decoder(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu))

    adapted, outputs = understood(Halves())
    assert {"encode: Halves.encoder", "decode: Halves.decoder"} <= set(adapted.recognised)
    assert list(outputs["encoder"]) == ["mu", "logvar", "std"]


class Conditional(Base):
    """encode takes shift, decode takes shift and, by keyword alone, label."""

    def encode(self, x, shift):
        return Normal(self.mu(x) + shift[:, None], torch.exp(0.5 * self.logvar(x)))

    def decode(self, z, shift, *, label):
        return self.head(z) + shift[:, None] + label[:, None].float()


CONDITIONS = {"label": torch.tensor([0, 1, 2, 1]), "shift": torch.rand(4, generator=torch.Generator().manual_seed(4))}


def test_conditions_go_where_their_names_are_taken():
    model = Conditional()
    adapted, outputs = understood(model, conditions=CONDITIONS, classes={"label": ("a", "b", "c")})
    taken = {c.name: (c.components, c.dtype, c.classes) for c in adapted.signature.conditions}
    assert taken == {
        "label": (("decoder",), "int64", ("a", "b", "c")),
        "shift": (("encoder", "decoder"), "float32", None),
    }
    with torch.no_grad():
        expected = model.decode(adapted.examples["z"], CONDITIONS["shift"], label=CONDITIONS["label"])
    torch.testing.assert_close(outputs["decoder"]["x"], expected)


class Numbered(Base):
    """encode and decode take vectors, which forward makes of the numbers of classes."""

    def __init__(self):
        super().__init__(PLAIN)
        self.shift, self.label = nn.Linear(3, 3), nn.Linear(3, 10)

    def encode(self, x, c):
        return self.mu(x) + self.shift(c), self.logvar(x)

    def decode(self, z, c):
        return self.head(z) + self.label(c)

    def forward(self, x, y):
        c = torch.nn.functional.one_hot(y, 3).float()
        mu, logvar = self.encode(x, c)
        return self.decode(mu + torch.randn_like(mu) * torch.exp(0.5 * logvar), c), mu, logvar


class Skipped(Numbered):
    def forward(self, x, y):
        answer, *others = super().forward(x, y)
        return answer + x, *others


class OtherName(Numbered):
    def forward(self, x, target):
        return super().forward(x, target)


def test_conditions_of_forward_alone_are_those_of_its_halves():
    y, z = torch.tensor([2, 0, 1, 1]), torch.randn(4, 3)
    model = Numbered()
    adapted, outputs = understood(model, conditions={"y": y})
    assert {c.name: (c.components, c.dtype) for c in adapted.signature.conditions} == {
        "y": (("encoder", "decoder"), "int64")
    }
    assert any(line.startswith("checked: forward") for line in adapted.recognised)
    c = torch.eye(3)[y]
    with torch.no_grad():
        mu, logvar = model.encode(X, c)
        torch.testing.assert_close(outputs["encoder"]["mu"], mu)
        torch.testing.assert_close(outputs["encoder"]["logvar"], logvar)
        torch.testing.assert_close(adapted.modules["decoder"](z, y)[0], model.decode(z, c))
    prior = adapted.signature.latent.prior
    assert (prior.kind, prior.assumed) == ("normal", True)


@pytest.mark.parametrize(
    ("model", "conditions", "words"),
    [
        (Skipped, {"y": torch.arange(4) % 3}, "^encode: also takes c; the conditions have y; give each"),
        (OtherName, {"y": torch.arange(4) % 3}, "^encode: also takes c; the conditions have y; give each"),
        (Numbered, {}, r"^encode: also takes c; pass conditions=\{'c': …\}"),
    ],
)
def test_a_forward_that_takes_other_conditions_is_no_help(model, conditions, words):
    with pytest.raises(ExportError, match=words):
        understood(model(), conditions=conditions)


class Bare(nn.Module):
    """A module without any of it."""


class NoForward(Base):
    forward = nn.Module.forward


class NoDraw(Base):
    def forward(self, x):
        return self.decode(self.mu(x))


class OtherShape(Base):
    def forward(self, x):
        return self.head(self.mu(x) + torch.exp(0.5 * self.logvar(x)) * torch.randn(len(x), 3))[:, :4]


class BrokenForward(Base):
    def forward(self, x, labels):
        return super().forward(x)


class Uniform(Base):
    def encode(self, x):
        return torch.distributions.Uniform(self.mu(x), self.mu(x) + 1)


PLAIN = FORMS["mean and logvar"]


@pytest.mark.parametrize(
    ("model", "declaration", "words"),
    [
        (Bare, {}, "Bare: expected a method encode or a submodule encoder.*pass encode="),
        (Base, {"encode": "look"}, "Base: expected a method look from encode='look'"),
        (Base, {"decode": "draw"}, "Base: expected a method draw from decode='draw'"),
        (Base, {"posterior": "precision"}, "posterior: expected one of logvar, std, .*got 'precision'"),
        (Base, {"posterior": "codes"}, "posterior: expected one of logvar, std, .*got 'codes'"),
        (NoForward, {}, "there is no forward; pass posterior="),
        (NoDraw, {}, "forward draws no normal noise; pass posterior="),
        (OtherShape, {}, "forward returns nothing of the shape of decode's answer; pass posterior="),
        (BrokenForward, {}, "forward fails on the example.*labels.*; pass posterior="),
        (Uniform, {}, "expected a normal posterior, got Uniform; pass encode="),
        (Base, {"encode": lambda x: None}, "encode: expected tensors, got NoneType; pass encode="),
        (Base, {"encode": lambda x: ()}, "encode: expected tensors, got tuple; pass encode="),
        (Base, {"encode": lambda x: x.numpy()}, "ndarray has none; pass encode="),
        (Base, {"encode": lambda x: x.sum(0), "posterior": "none"}, r"expected a latent \[4, …\].*pass encode="),
        (Base, {"encode": lambda x: 1 / 0}, r"encode: fails on the example, \[4, 10\]: division by zero"),
        (
            Base,
            {"decode": lambda z: None, "posterior": "std"},
            "decode: expected a tensor, .*got NoneType; pass decode=",
        ),
        (Base, {"decode": lambda z: z @ z, "posterior": "std"}, r"decode: fails on latents \[4, 3\].*; pass decode="),
        (Base, {"likelihood": "cauchy"}, "likelihood: expected bernoulli, gaussian, laplace.* or none"),
        (
            Base,
            {"decode": lambda z: Bernoulli(z), "likelihood": "gaussian", "posterior": "std"},
            "likelihood: expected bern",
        ),
        (Base, {"axes": ("height", "width")}, r"axes: expected 1 name for an observation \[10\]"),
        (Base, {"latent_axes": ("a", "b")}, r"latent_axes: expected 1 name for the latent \[3\]"),
    ],
)
def test_what_stays_unknown_is_an_error_that_names_the_argument(model, declaration, words):
    made = model() if model is Bare else model(PLAIN)
    with pytest.raises(ExportError, match=words) as caught:
        understood(made, Declaration(**declaration))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("model", "conditions", "words"),
    [
        (Base, {"mu": torch.zeros(4)}, "condition 'mu': expected another name, this one is taken"),
        (Conditional, {}, "encode: also takes shift; pass conditions={'shift': …}"),
        (Conditional, {"move": torch.zeros(4)}, "encode: also takes shift; the conditions have move; give each"),
        (Conditional, {"shift": torch.zeros(4)}, "decode: also takes label; pass conditions={'label': …}"),
    ],
)
def test_conditions_that_do_not_fit_are_named(model, conditions, words):
    with pytest.raises(ExportError, match=words):
        understood(model(PLAIN), conditions=conditions)


# What contradicts itself, or is no latent.


def attempt(model, declaration=None):
    """The encoder's outputs, or what the refusal says."""
    try:
        return understood(model, declaration)[1]["encoder"], ""
    except ExportError as error:
        return {}, str(error)


@pytest.mark.parametrize("form", ["mapping", "Normal"])
def test_a_hint_overrides_names_too(form):
    model = Base(FORMS[form])
    model.logvar.bias.data += 10
    encoder, refusal = attempt(model, Declaration(posterior="var"))
    with torch.no_grad():
        second = model.logvar(X) if form == "mapping" else torch.exp(0.5 * model.logvar(X))
    assert "posterior" in refusal or torch.allclose(encoder["std"], second.sqrt())


def test_a_laplace_says_its_scale():
    class Sharp(Base):
        def decode(self, z):
            return Laplace(self.head(z), 0.3)

    adapted, _ = understood(Sharp(FORMS["Normal"]), Declaration(likelihood="laplace"))
    assert adapted.signature.likelihood.scale == pytest.approx(0.3)


COUNTS = torch.poisson(torch.full((4, 10), 3.0), generator=torch.Generator().manual_seed(0))


class Counting(Base):
    def decode(self, z):
        return Poisson(self.head(z).exp())


def test_a_poisson_is_recognized_by_its_distribution():
    model = Counting(FORMS["Normal"])
    adapted, outputs = understood(model, x=COUNTS)
    assert adapted.signature.likelihood == Likelihood("poisson", "x")
    assert adapted.signature.observation.range is None
    with torch.no_grad():
        torch.testing.assert_close(outputs["decoder"]["x"], model.head(adapted.examples["z"]).exp())


class Rates(Base):
    def decode(self, z):
        return self.head(z).exp()


def test_a_poisson_is_declared_for_a_tensor_of_rates():
    adapted, _ = understood(Rates(FORMS["Normal"]), Declaration(likelihood="poisson"), x=COUNTS)
    assert adapted.signature.likelihood == Likelihood("poisson", "x")


@pytest.mark.parametrize(("model", "declaration", "x", "words"), [
    (Counting, None, COUNTS + 0.5, r"^example: expected counts .* got [0-9]+\.5 at \[0, 0\]; .* decode="),
    (Counting, None, COUNTS - 9, r"^example: expected counts .* got -[0-9]+ at \[0, 0\]"),
    (Counting, Declaration(likelihood="gaussian"), COUNTS, "expected poisson, since decode returns a Poisson"),
    (Base, Declaration(likelihood="poisson"), COUNTS, "^decode: expected a mean from 0 to inf .*Poisson"),
    (Rates, Declaration(likelihood="poisson"), X, r"^example: expected counts .* another likelihood="),
    (Base, Declaration(likelihood="poisson", scale=2.0), COUNTS, "scale: expected only with one of"),
])  # fmt: skip
def test_what_is_no_poisson_is_refused(model, declaration, x, words):
    with pytest.raises(ExportError, match=words):
        understood(model(FORMS["Normal"]), declaration, x=x)


def test_a_scale_that_contradicts_the_decoders_is_refused():
    class Normally(Base):
        def decode(self, z):
            return Normal(self.head(z), 0.5)

    _, refusal = attempt(Normally(FORMS["Normal"]), Declaration(likelihood="gaussian", scale=0.1))
    assert "scale" in refusal


@pytest.mark.parametrize("alone", [True, False])
def test_a_number_among_the_tensors_is_understood_or_refused(alone):
    model = Base(lambda mu, logvar, z: mu.sum() if alone else (mu, logvar, mu.square().sum()))
    encoder, refusal = attempt(model, Declaration(posterior="none" if alone else None))
    assert "encode=" in refusal or list(encoder) == ["mu", "logvar", "std"]


def test_a_sample_that_is_the_mean_in_evaluation_mode_is_understood_or_refused():
    class Gated(Base):
        def encode(self, x):
            mu, logvar = self.mu(x), self.logvar(x)
            return (mu + torch.randn_like(mu) * torch.exp(0.5 * logvar) if self.training else mu), mu, logvar

    encoder, refusal = attempt(Gated())
    assert "encode=" in refusal or list(encoder) == ["mu", "logvar", "std"]


class MeanAlone(Base):
    """Its `forward` decodes the mean unless it is told to sample; it counts its runs."""

    def __init__(self):
        super().__init__(lambda mu, logvar, z: (mu, logvar))
        self.runs = []

    def forward(self, x, sample=False):
        self.runs.append(self.training)
        mu, logvar = self.mu(x), self.logvar(x)
        return self.decode(mu + torch.exp(0.5 * logvar) * torch.randn_like(mu) if sample else mu)


class MeanAndNoise(MeanAlone):
    def forward(self, x):
        return super().forward(x, sample=True)


# The last run of the second model shows that its forward does not call encode.
@pytest.mark.parametrize(("kind", "runs"), [(MeanAlone, [False, True, False]), (MeanAndNoise, [False] * 4)])
def test_a_forward_that_draws_nothing_runs_once_for_each_observation_and_mode(kind, runs):
    model = kind()
    with unchanged(model):
        adapt(model, X, Declaration(posterior="logvar"))
        assert model.runs == runs


class _Slow(nn.Module):
    """Takes a fifth of a second of the processor, and counts its runs in what it returns."""

    def __init__(self):
        super().__init__()
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        begun = time.process_time()
        while time.process_time() - begun < 0.2:
            pass
        return (x + self.runs,)


def test_a_slow_component_runs_once_for_the_same_inputs():
    module, x = _Slow(), torch.zeros(2, 3)
    first, seconds = timed_run(module, [x])
    again, told = timed_run(module, [x.clone()])
    assert torch.equal(first[0], again[0])
    assert told == seconds > 0.1
    again[0].fill_(9.0)
    assert float(timed_run(module, [x])[0][0].max()) == 1.0


@pytest.mark.parametrize(
    "other", [torch.zeros(3, 2), torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, 3), torch.zeros(2, 3, 1)]
)
def test_a_slow_component_runs_for_other_inputs(other):
    module = _Slow()
    timed_run(module, [torch.zeros(2, 3)])
    assert float(run_module(module, [other])[0].max() - other.max()) == 2.0


def test_a_run_again_is_neither_kept_nor_an_earlier_answer():
    module, x = _Slow(), torch.zeros(2, 3)
    assert [float(run_module(module, [x], again=again)[0].max()) for again in (False, True, False)] == [1.0, 2.0, 1.0]
