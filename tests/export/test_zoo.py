"""The models of the compatibility table, exported unchanged and run without PyTorch."""

import numpy as np
import pytest
import torch
from zoo.models import ENTRIES

import vae_export
import vae_runtime
from vae_export.parity.comparison import tolerance
from vae_export.understand.draws import Draws

# Third parties' own deprecations, at import and in their layers.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def values_of(output):
    """The latents out of what a model gives: the mean of each posterior, codes, or a value."""
    if isinstance(output, torch.Tensor):
        return [output]
    if not isinstance(output, (tuple, list)):
        return [output.mean]
    if isinstance(output[0], tuple):
        return [mean for mean, _ in output]
    return [output[0]]


def rows(tensor, n):
    """So many rows, of which no two that follow each other are alike."""
    return torch.cat([tensor] * -(-n // len(tensor)))[:n]


def widened(x, observation):
    """The observations at another size of every dynamic axis than that of the example."""
    for name, sizes in observation.dynamic.items():
        axis = observation.axes.index(name) + 1
        usual = x.shape[axis]
        size = usual + sizes.multiple if usual + sizes.multiple in sizes else usual - sizes.multiple
        x = torch.cat([x, x.flip(axis)], dim=axis).narrow(axis, 0, size)
    return x.contiguous()


def close(found, expected):
    """Whether a bundle's answer is the model's, by the tolerance of the parity check, doubled for this machine."""
    assert found.shape == tuple(expected.shape)
    if not expected.is_floating_point():
        return bool(np.mean(found != expected.numpy()) <= 1e-2)
    return bool(np.max(np.abs(found - expected.numpy())) <= 2 * tolerance(expected.numpy()))


# One of each family in every run; all of the table in the slow tests, but what takes minutes is left to `make zoo`.
# These take longer than ten seconds each.
LONG = {"AutoencoderKL", "GRU, a latent for every step"}
FIRST = {entry.family: entry for entry in reversed(ENTRIES) if not entry.slow and entry.name not in LONG}.values()
CHOSEN = [
    pytest.param(entry, marks=() if entry in FIRST else pytest.mark.slow, id=str(entry))
    for entry in ENTRIES
    if not entry.slow
]


def test_every_family_of_the_table_has_a_model_in_every_run():
    assert {entry.family for entry in FIRST} >= {
        "plain",
        "conditional",
        "hierarchical",
        "sequences",
        "codes",
        "diffusers",
    }


@pytest.mark.parametrize("entry", CHOSEN)
def test_exports_unchanged_and_gives_what_the_model_gives(entry, tmp_path):
    if entry.library:
        pytest.importorskip(entry.library, reason=f"{entry.library} is not installed; `make zoo` has it")
    model, arguments = entry.make()
    if entry.expect:
        with pytest.raises(vae_export.ExportError, match=entry.expect.removeprefix("refused: ")):
            vae_export.export(model, tmp_path / "out", **arguments)
        return
    exported = vae_export.export(model, tmp_path / "out", **arguments)
    assert exported.parity.passed
    assert exported.recognised
    report = vae_runtime.verify(exported.path)
    assert report.passed, str(report)
    vae = vae_runtime.load(exported.path)
    for x in (rows(arguments["example"], 5), widened(rows(arguments["example"], 3), vae.manifest.observation)):
        given = {name: rows(tensor, len(x)) for name, tensor in arguments.get("conditions", {}).items()}
        encoder, decoder = (
            {c.name: given[c.name].numpy() for c in vae.conditions if component in c.components}
            for component in ("encoder", "decoder")
        )
        # A model's own draws are 0, as the bundle's are without a seed.
        with torch.no_grad(), Draws.constant(0.0):
            latents = values_of(entry.encode(model, x, given))
        answer = vae.encode(x.numpy(), conditions=encoder or None)
        modes = answer.mode()
        latents_of = dict(modes) if isinstance(modes, dict) else {vae.latents[0].name: modes}
        assert len(latents_of) == len(latents)
        for found, expected in zip(latents_of.values(), latents, strict=True):
            assert close(found.reshape(expected.shape), expected)
        # From the bundle's own latents, so that a code that is as near as another does not matter.
        own = tuple(torch.from_numpy(mode) for mode in latents_of.values())
        with torch.no_grad(), Draws.constant(0.0):
            mean = values_of(entry.decode(model, own, given))[0]
        found = vae.decode(modes, conditions=decoder or None)
        assert close(found, mean)
        assert not close(found + 1e-2 * np.abs(found).max() + 1e-2, mean)


def test_a_deterministic_autoencoder_refuses_to_sample_unless_a_prior_was_fitted(tmp_path):
    plain, fitted = (
        next(entry for entry in ENTRIES if str(entry) == f"autoencoder: {name}")
        for name in ("no prior", "prior='gaussian'")
    )
    for entry in (plain, fitted):
        model, arguments = entry.make()
        vae = vae_runtime.load(vae_export.export(model, tmp_path / entry.name.strip("'"), **arguments).path)
        if entry is plain:
            with pytest.raises(vae_runtime.InputError, match="deterministic"):
                vae.sample(2, seed=0)
        else:
            assert vae.sample(2, seed=0).shape == (2, 12)
