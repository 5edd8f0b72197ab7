"""The models of the compatibility table, exported unchanged and run without PyTorch."""

import dataclasses

import pytest
from zoo.models import ENTRIES
from zoo.truth import differences, values_of

import vae_export
import vae_runtime

# Third parties' own deprecations, at import and in their layers.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


# One of each family, those that take long in the long tests; all of the table in the slow tests, but what takes minutes
# is left to `make zoo`.
LONG = {"AutoencoderTiny", "LSTM encoder, autoregressive decoder"}
# These take longer still.
LONGEST = {"AutoencoderKL", "GRU, a latent for every step"}
FIRST = {entry.family: entry for entry in reversed(ENTRIES) if not entry.slow and entry.name not in LONGEST}.values()


def marks(entry):
    if entry not in FIRST:
        return pytest.mark.slow
    return pytest.mark.long if entry.name in LONG else ()


CHOSEN = [pytest.param(entry, marks=marks(entry), id=str(entry)) for entry in ENTRIES if not entry.slow]


def test_every_family_of_the_table_has_a_model():
    assert {entry.family for entry in FIRST} >= {
        "plain",
        "conditional",
        "hierarchical",
        "sequences",
        "codes",
        "diffusers",
    }


def biased(entry):
    """The same model with a truth that is off by a hundredth."""

    def decode(model, z, conditions):
        (value, *_) = values_of(entry.decode(model, z, conditions))
        return value + 1e-2 * value.abs().max() + 1e-2

    return dataclasses.replace(entry, decode=decode)


@pytest.mark.parametrize("entry", CHOSEN)
def test_exports_unchanged_and_gives_what_the_model_gives(entry, tmp_path):
    if entry.library:
        for library in (entry.library, *entry.more_libraries):
            pytest.importorskip(library, reason=f"{library} is not installed; `make zoo` has it")
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
    error = exported.parity.max_abs
    assert differences(entry, model, arguments, vae, error) == []
    assert differences(biased(entry), model, arguments, vae, error) != []


@pytest.mark.long
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
