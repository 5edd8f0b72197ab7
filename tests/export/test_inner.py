"""Models inside of other objects: training frameworks, wrappers, and objects that hold a module."""

import numpy as np
import pytest
import torch
from torch import nn

import vae_runtime
from vae_export import export
from vae_export.errors import ExportError
from vae_export.sources import Examples, model_source
from vae_export.understand.declaration import Declaration
from vae_export.understand.inner import module_of
from vae_export.understand.state import unchanged
from vae_export.understood import understand_source
from vae_runtime.errors import InputError

X = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(8, 6), nn.Linear(3, 8)

    def encode(self, x):
        return self.body(x).chunk(2, 1)

    def decode(self, z):
        return self.head(z)

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(mu + torch.randn_like(mu) * (logvar / 2).exp()), mu, logvar


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(8, 3), nn.Linear(3, 8)

    def forward(self, x):
        return self.decoder(self.encoder(x))


class Lightning(nn.Module):
    """What a LightningModule does to an export: no trainer, a log that fails outside of a loop, no forward."""

    _jit_is_scripting = False

    def __init__(self, net):
        super().__init__()
        self.net = net

    @property
    def trainer(self):
        if not self._jit_is_scripting:
            raise RuntimeError("is not attached to a `Trainer`")
        return None

    def log(self, name, value):
        raise RuntimeError("the loop's result collection is not registered yet")

    def training_step(self, batch):
        raise NotImplementedError


class Logging(Lightning):
    def encode(self, x):
        self.log("mean", x.mean())
        return self.net.encode(x)

    def decode(self, z):
        return self.net.decode(z)

    def forward(self, x):
        return self.net(x)


class Through(Lightning):
    def forward(self, x):
        return self.net(x)


class Scaled(Lightning):
    def forward(self, x):
        return self.net(2 * x - 1)


class Two(Lightning):
    def __init__(self, net):
        super().__init__(net)
        self.other = Net()


class Drawing(Lightning):
    """The wrapper has the prior, and its module does not know of it."""

    def __init__(self, net):
        super().__init__(net)
        self.prior_mean = nn.Parameter(torch.full((3,), 5.0))

    def sample(self, n):
        return self.net.decode(self.prior_mean + 0.5 * torch.randn(n, 3))


class Holding:
    def __init__(self, **modules):
        vars(self).update(modules)


def understood(model, **declared):
    source = model_source(model, Declaration(**declared), Examples(X), None)
    with unchanged(source.model):
        return understand_source(source)


def encoder_error(adapted, net, x=X):
    with torch.no_grad():
        return float((adapted.modules["encoder"](X)[0] - net.encode(x)[0]).abs().max())


def test_a_lightning_module_that_logs_is_exported_without_its_trainer(tmp_path):
    model = Logging(Net())
    export(model, tmp_path / "bundle", example=X)
    with torch.no_grad():
        expected = model.net.encode(X)[0].numpy()
    np.testing.assert_allclose(vae_runtime.load(tmp_path / "bundle").encode(X.numpy()).mean, expected, atol=1e-6)
    with pytest.raises(RuntimeError, match="result collection"):
        model.encode(X)
    with pytest.raises(RuntimeError, match="not attached"):
        _ = model.trainer


@pytest.mark.parametrize("wrapper", [Lightning, Through])
def test_the_only_model_in_a_module_is_meant(wrapper):
    model = wrapper(Net())
    adapted = understood(model)
    assert encoder_error(adapted, model.net) == 0
    assert f"{wrapper.__name__}: its net (Net) is exported; what it does itself" in adapted.recognised[0]


def test_a_forward_that_does_more_than_the_model_in_it_wins():
    model = Scaled(Net())
    adapted = understood(model)
    assert encoder_error(adapted, model.net, 2 * X - 1) < 1e-6
    assert encoder_error(adapted, model.net) > 1e-2
    with pytest.raises(ExportError, match="pass encode="):
        understood(Scaled(Autoencoder()))


def test_of_two_models_none_is_chosen():
    with pytest.raises(ExportError, match="expected a method encode"):
        understood(Two(Net()))


def test_the_sampler_of_the_wrapper_counts():
    adapted = understood(Drawing(Net()))
    assert adapted.signature.latent.prior.kind == "mixture"
    assert any("as Drawing.sample draws it" in line for line in adapted.recognised)


@pytest.mark.parametrize("name", ["module", "model", "net", "any"])
def test_an_object_that_holds_a_module_is_looked_into(name):
    net = Net()
    adapted = understood(Holding(**{name: net}))
    assert encoder_error(adapted, net) == 0
    assert "Holding: the Net that it holds is exported" in adapted.recognised[0]


# torch.compile itself imports what PyTorch deprecates.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrappers_of_pytorch_are_taken_off_in_any_order():
    net = Net()
    for wrapped in (net, torch.compile(net), nn.DataParallel(torch.compile(net)), torch.compile(nn.DataParallel(net))):
        assert module_of(wrapped) is net


def test_an_object_that_holds_several_modules_or_none_is_refused():
    with pytest.raises(InputError, match="got Holding, which holds one, two; pass the one"):
        understood(Holding(one=Net(), two=Net()))
    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module or the folder of a run, got Holding"):
        understood(Holding(number=3))
