from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from vae_export.errors import ExportError
from vae_export.sources import Examples, model_source
from vae_export.understand.adapt import adapt
from vae_export.understand.declaration import Declaration
from vae_export.understand.probe import probe
from vae_export.understand.soundness import require_sound
from vae_export.understand.state import unchanged
from vae_export.understood import understand_source

X = torch.rand(6, 12, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(12, 8), nn.Linear(4, 12)

    def encode(self, x):
        return self.body(x).chunk(2, 1)

    def decode(self, z):
        return self.head(z)

    def noise(self, mu):
        return torch.randn_like(mu)

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(mu + self.noise(mu) * torch.exp(0.5 * logvar)), mu, logvar


class Diverged(Plain):
    def __init__(self):
        super().__init__()
        self.body.weight.data[3, 1] = float("nan")


class Coupled(Plain):
    def encode(self, x):
        return super().encode(x - x.mean(0))


class ByTheBatch(Plain):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(12, track_running_stats=False)

    def encode(self, x):
        return super().encode(self.norm(x))


class OfNumpy(Plain):
    def noise(self, mu):
        return torch.from_numpy(np.random.standard_normal(mu.shape).astype(np.float32))


class Dividing(Plain):
    def encode(self, x):
        return super().encode(x / torch.zeros(()))


class Still(Plain):
    def noise(self, mu):
        return torch.zeros_like(mu)


class Forced(Plain):
    """Its decoder is shown the observation, as a decoder of sequences is in training."""

    def decode(self, z, x):
        return self.head(z) + 0.1 * x

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(mu + self.noise(mu) * torch.exp(0.5 * logvar), x), mu, logvar


class Averaging(Plain):
    """Keeps an average of what it sees, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(12))

    def encode(self, x):
        self.seen = 0.9 * self.seen + 0.1 * x.mean(0)
        return super().encode(x - self.seen)


class Annealing(Plain):
    steps = 0

    def noise(self, mu):
        self.steps += 1
        return super().noise(mu) * self.steps / 100


class Skipping(Plain):
    """Its decoder takes what the encoder left."""

    def encode(self, x):
        self.skip = 0.1 * x
        return super().encode(x)

    def decode(self, z):
        return self.head(z) + self.skip


class Restoring(Plain):
    """Standardizes each observation, and its decoder undoes that."""

    def encode(self, x):
        self.seen = [x.mean(1, keepdim=True)]
        return super().encode(x - self.seen[0])

    def decode(self, z):
        return self.head(z) + self.seen[0][: len(z)]


class OfTheFirst(Plain):
    def encode(self, x):
        self.first = x[:1].mean()
        return super().encode(x)

    def decode(self, z):
        return self.head(z) + self.first


class Recurrent(Plain):
    state = 0.0

    def decode(self, z):
        self.state = 0.5 * self.state + float(z.sum())
        return self.head(z) + self.state

    def forward(self, x):
        mu, logvar = self.encode(x)
        return mu + self.noise(mu) * torch.exp(0.5 * logvar)


class Keeping(Plain):
    """Leaves things behind that nothing reads."""

    def encode(self, x):
        self.last, self.count = x, getattr(self, "count", 0) + 1
        return super().encode(x)


class ForcedByName(Forced):
    def decode(self, z, target):
        return super().decode(z, target)


class ForcedByPart(Forced):
    """As a decoder of sequences, that is shown all but the last step."""

    def decode(self, z, steps):
        return self.head(z) + 0.1 * steps.sum(1, keepdim=True)

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(mu + self.noise(mu) * torch.exp(0.5 * logvar), steps=x[:, :-1]), mu, logvar


class NeedingMore(Forced):
    def decode(self, z, label):
        return super().decode(z, label)

    def forward(self, x):
        mu, logvar = self.encode(x)
        return self.decode(mu + self.noise(mu) * torch.exp(0.5 * logvar), torch.ones(12)), mu, logvar


def understood(model, x=X):
    source = model_source(model, Declaration(), Examples(x), None)
    with unchanged(source.model):
        return understand_source(source)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Diverged, r"model: body\.weight\[3, 1\]: expected finite weights, got nan; load those"),
        (
            Dividing,
            r"^encode: expected finite numbers, got -?(inf|nan) for row 0 of the example, whose values lie in -?\d",
        ),
        (Coupled, r"row 0 differs .*rows of a batch influence each other"),
        (ByTheBatch, r"rows of a batch influence each other"),
        (
            OfNumpy,
            r"forward: two runs with the same noise differ: .* numpy's generator or .*; draw with torch\.randn_like",
        ),
        (
            Forced,
            r"^decode: also takes x, the observation itself, as in teacher forcing; pass decode=, a function of the",
        ),
        (ForcedByName, r"^decode: also takes target, the observation itself, as in teacher forcing"),
        (ForcedByPart, r"^decode: also takes steps, the observation itself, as in teacher forcing"),
        (NeedingMore, r"^decode: also takes label; pass conditions="),
        # Its answers are in doubt for no other reason.
        (Averaging, r"^encode: two runs with the same noise differ, and each leaves something in the model \(seen\)"),
        (Annealing, r"^forward: two runs with the same noise differ, and each leaves .* \(steps\) .* self\.training"),
        (Skipping, r"^decode: its answer .* depends on what the last call of encode left in the model \(skip\)"),
        (Restoring, r"what the last call of encode left in the model \(seen\), .* make that a condition"),
        (OfTheFirst, r"what the last call of encode left in the model \(first\)"),
        (Still, r"^posterior: cannot find out what encode's second tensor is, forward draws no normal noise; pass"),
    ],
)
def test_a_model_is_refused_for_its_fault_and_not_for_the_doubt_that_follows(make, reason):
    with pytest.raises(ExportError, match=reason):
        understood(make())


def test_no_observation_that_measures_also_calibrates():
    for n in (1, 2, 3, 7):
        source = model_source(Plain(), Declaration(), Examples(X[:n] if n < 7 else torch.cat([X, X[:1] + 1])), None)
        shared = {tuple(row) for row in source.calibration.x.tolist()} & {
            tuple(row) for row in source.measured.x.tolist()
        }
        assert bool(shared) == (n == 1)
        assert str(source.measured).endswith("the caller's, the same" if n == 1 else "the caller's, others")


def test_the_model_without_a_fault_is_understood():
    assert understood(Plain()).signature.latent.posterior.kind == "normal"


@pytest.mark.parametrize(("x", "runs"), [(X, 2), (X[:1].repeat(6, 1), 3)])
def test_other_values_are_tried_only_where_no_two_rows_differ(x, runs):
    source = model_source(Plain(), Declaration(posterior="logvar"), Examples(X), None)
    with unchanged(source.model):
        adapted = understand_source(source)
        adapted = replace(adapted, examples={**adapted.examples, adapted.signature.observation.name: x})
        batches = []
        adapted.modules["encoder"].register_forward_pre_hook(lambda module, given: batches.append(len(given[0])))
        probe(adapted)
    # Each row alone is run beside.
    assert [batches.count(6), batches.count(1)] == [runs, 4]


def test_what_a_model_keeps_and_does_not_read_is_no_fault():
    assert understood(Keeping()).signature.latent.posterior.kind == "normal"


def test_without_the_check_a_decoder_takes_what_the_example_left(monkeypatch):
    monkeypatch.setattr("vae_export.understand.adapt.require_no_memory", lambda *given: None)
    assert understood(OfTheFirst()).signature.latent.prior.kind == "normal"


def test_a_decoder_with_a_state_of_its_own_is_refused():
    model = Recurrent().eval()
    with unchanged(model), pytest.raises(ExportError, match=r"what an earlier call of decode left .* \(state\)"):
        adapt(model, X, Declaration(posterior="logvar"))


class Rounding(Plain):
    """Its rounding depends on the batch, as that of PyTorch's kernels does, and is as large as in a deep model."""

    share = 0.0

    def decode(self, z):
        offset = 5000.0 if z.shape[0] > 1 else 0.0
        x = (self.head(z) + offset) - offset
        return x - self.share * x.mean(0)


class RoundingTogether(Rounding):
    share = 1e-2


def test_rows_that_differ_by_rounding_alone_do_not_influence_each_other():
    def probed(model):
        source = model_source(model, Declaration(posterior="logvar"), Examples(X), None)
        with unchanged(source.model):
            return probe(understand_source(source))

    x = torch.randn(2, 4)
    model = Rounding()
    assert (model.decode(x)[:1] - model.decode(x[:1])).abs().max() > 1e-4
    assert probed(model).signature.latent.posterior.kind == "normal"
    with pytest.raises(ExportError, match="rows of a batch influence each other"):
        probed(RoundingTogether())


def test_rows_that_influence_each_other_are_seen_before_any_doubt():
    with pytest.raises(ExportError, match="encode: row 0 differs when it is run alone"):
        require_sound(Coupled().eval(), X, {}, Declaration())
    require_sound(Plain().eval(), X, {}, Declaration())
